"""What an unfinished stage has measured so far, so that it goes on where it was interrupted.

One small file a cell and process, under a key that holds everything the samples depend on: cell, code,
protocol and machine. Git-ignored, and emptied of a stage's entries once its record is written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from bench.files import read_json, write_json

FOLDER = Path(".scratch/cells")


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

    def clear(self) -> None:
        """The stage has its record: a later run measures afresh."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, cell: str, process: int) -> Path:
        return self._folder / f"{cell}.{process}.json"
