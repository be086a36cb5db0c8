"""Folders of tensors that are computed once: digests beside them, so that no row is blamed for a damaged file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from bench.files import read_json, write_json

INDEX = "index.json"


class Damaged(Exception):
    """A file is not what was written; the message says which, and what makes it anew."""


def digest(path: Path) -> str:
    """Of all its bytes; a GB takes a second."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def write_index(folder: Path, **made_from: Any) -> None:
    """To be written last: what the folder was made from, and the digest of every file of tensors in it."""
    files = {path.name: digest(path) for path in sorted(folder.glob("*.safetensors"))}
    write_json(folder / INDEX, {**made_from, "files": files})


def read_index(folder: Path) -> dict[str, Any]:
    """What `write_index` wrote; without `files` where that cannot be read, or lists others than there are."""
    try:
        index = dict(read_json(folder / INDEX))
    except (OSError, ValueError, TypeError):
        return {}
    there = {path.name for path in folder.glob("*.safetensors")}
    return index if isinstance(index.get("files"), dict) and set(index["files"]) == there else {}


def first_damaged(folder: Path) -> Path | None:
    """The first file that the folder's index knows by another digest; without an index nothing is known."""
    files = read_index(folder).get("files", {})
    return next((folder / name for name in files if digest(folder / name) != files[name]), None)


def refuse_damaged(folder: Path, stage: str) -> None:
    """See `first_damaged`.

    Raises:
        Damaged: naming the file, and the DVC stage that makes its folder anew.
    """
    found = first_damaged(folder)
    if found:
        raise Damaged(f"{found} is damaged: `dvc repro -fs {stage}`")
