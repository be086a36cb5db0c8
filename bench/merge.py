"""Merging branches that were both measured: what git calls for dvc.lock and for records (`make merge-driver`).

dvc.lock is merged stage by stage. A stage that one side alone measured again is taken from that side, with its record;
one that both did is kept as it is here, with its record, and said. Nothing else runs again for it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench import blocks
from bench.files import write_text


def lock(base: str, ours: str, theirs: str) -> tuple[str, list[str]]:
    """The merged text, and the stages that both sides measured.

    Raises:
        ValueError: one of the three is no dvc.lock.
    """
    sides = []
    for name, text in (("the common ancestor", base), ("this branch", ours), ("the other branch", theirs)):
        try:
            sides.append(blocks.split(text))
        except ValueError as error:
            raise ValueError(f"dvc.lock of {name}: {error}") from None
    was, mine, other = sides
    merged: dict[str, str] = {}
    both = []
    for stage in {**mine, **other}:
        before, here, there = was.get(stage), mine.get(stage), other.get(stage)
        if here not in (before, there) and there != before:
            both += [stage] if here and there else []
            kept = here or there
        else:
            kept = here if there == before else there
        if kept:
            merged[stage] = kept
    return blocks.join(merged), both


def main(arguments: list[str]) -> int:
    """`lock BASE OURS THEIRS` writes the merge to OURS; `record PATH` keeps ours. Exit 1 leaves it to git's user."""
    what, *paths = arguments
    if what == "record":
        print(f"{paths[0]}: both branches measured it; this branch's is kept", file=sys.stderr)
        return 0
    base, ours, theirs = (Path(path) for path in paths)
    try:
        text, both = lock(*(path.read_text(encoding="utf-8") for path in (base, ours, theirs)))
    except ValueError as error:
        print(f"{error}; dvc.lock is left as this branch has it", file=sys.stderr)
        return 1
    write_text(ours, text)
    for stage in both:
        print(f"dvc.lock: both branches ran {stage}; this branch's is kept", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
