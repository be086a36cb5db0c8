"""What an unfinished stage has measured so far, so that it goes on where it was interrupted.

One small file a cell and process, under a key that holds everything the samples depend on: cell, code,
protocol and machine. Git-ignored. A stage's entries are given up once its record is written and DVC knows it:
between the two, dvc may be killed, would run the stage again, and all of it would be measured twice.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from bench.files import read_json, write_json, write_text

FOLDER = Path(".scratch/cells")
LOCK = Path("dvc.lock")
_RECORDED = "recorded"


def sweep(folder: Path = FOLDER, lock: Path = LOCK) -> None:
    """Give up the entries of every stage whose record DVC knows."""
    known = lock.read_text(encoding="utf-8") if lock.exists() else ""
    for note in folder.glob(f"*/{_RECORDED}"):
        if f"md5: {note.read_text(encoding='utf-8')}" in known:
            shutil.rmtree(note.parent, ignore_errors=True)


class Store:
    """The entries of one stage."""

    def __init__(self, depends_on: dict[str, Any], folder: Path = FOLDER) -> None:
        text = json.dumps(depends_on, sort_keys=True)
        self._folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]

    def get(self, cell: str, process: int) -> dict[str, Any] | None:
        """What was kept, if it was; a file that cannot be read counts as not there."""
        try:
            return read_json(self._path(cell, process))  # type: ignore[no-any-return]
        except (OSError, ValueError):
            return None

    def put(self, cell: str, process: int, result: dict[str, Any]) -> None:
        """Keep a result."""
        write_json(self._path(cell, process), result)

    def recorded(self, record: Path) -> None:
        """The stage has written its record; when DVC knows it too, a later run measures afresh."""
        digest = hashlib.md5(record.read_bytes(), usedforsecurity=False).hexdigest()  # as dvc.lock names it
        write_text(self._folder / _RECORDED, digest)

    def _path(self, cell: str, process: int) -> Path:
        return self._folder / f"{cell}.{process}.json"
