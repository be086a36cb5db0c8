"""dvc.lock as a sequence of blocks of text, one a stage: what is not touched stays as DVC wrote it, byte for byte."""

from __future__ import annotations

import re

import yaml

_HEAD = "schema: '2.0'\nstages:\n"
_STAGE = re.compile(r"^  (?=\S)(?P<name>[^\n]+):\n", re.MULTILINE)
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def split(text: str) -> dict[str, str]:
    """Stage -> its block, in the order of the file; an empty text has no stages.

    Raises:
        ValueError: this is no dvc.lock as DVC writes it (a conflict of git's stands in it, or it is torn).
    """
    if not text.strip():
        return {}
    try:
        said = yaml.load(text, Loader=_Loader)  # noqa: S506  # a safe loader
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(said, dict) or not text.endswith("\n") or said.get("schema") != "2.0":
        raise ValueError("not whole, or of another schema than 2.0")
    starts = list(_STAGE.finditer(text))
    ends = [*(start.start() for start in starts[1:]), len(text)]
    blocks = {
        str(yaml.safe_load(start["name"])): text[start.start() : end] for start, end in zip(starts, ends, strict=False)
    }
    if list(blocks) != list(said.get("stages") or {}):
        raise ValueError("its stages do not begin where DVC begins them")
    return blocks


def join(blocks: dict[str, str]) -> str:
    """The inverse."""
    return _HEAD + "".join(blocks.values())
