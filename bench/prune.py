"""What rows and grids that left params.yaml have left behind: records, oracles, entries of dvc.lock."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from bench import blocks
from bench.commands import BadInput
from bench.files import write_text
from bench.grid import FAMILIES, Params, valid_name

RESULTS, ORACLE, LOCK = Path("results"), Path("data/oracle"), Path("dvc.lock")


def prune(params: Params, asked: Namespace) -> int:
    """Exit 0, a line for each thing removed; other machines' folders are left alone unless named."""
    name = asked.machine or params.machine
    if not valid_name(name):
        raise BadInput(f"machine {name}, allowed: letters, digits, _ and -")
    try:
        known = blocks.split(LOCK.read_text(encoding="utf-8") if LOCK.exists() else "")
    except ValueError as error:
        raise BadInput(f"{LOCK}: {error}") from None
    paths = sorted([*_records(params, RESULTS / name), *_oracles(params)])
    machines = {name, *(path.name for path in RESULTS.glob("*") if path.is_dir())}
    stages = [stage for stage in known if not _wanted(params, stage, machines)]
    for line in [*map(str, paths), *(f"{LOCK}: {stage}" for stage in stages)]:
        print(line)
    if asked.dry_run:
        return 0
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if stages:
        write_text(LOCK, blocks.join({stage: block for stage, block in known.items() if stage not in stages}))
    print(f"{len(paths)} files and folders and {len(stages)} entries of {LOCK} removed")
    return 0


def _records(params: Params, folder: Path) -> Iterator[Path]:
    """Records of rows, or of a row on a grid, that nobody asks for any more."""
    rows = set(params.implementations())
    benched = {
        f"{row}-{grid}"
        for family in FAMILIES
        for row in params.family(family).implementations
        for grid in params.family(family).grids
    }
    yield from (path for path in folder.glob("bench/*.json") if path.stem not in benched)
    yield from (path for path in folder.glob("check/*.json") if path.stem.removesuffix(".verdict") not in rows)


def _oracles(params: Params) -> Iterator[Path]:
    for family in FAMILIES:
        yield from (path for path in ORACLE.glob(f"{family}/*") if path.name not in params.family(family).grids)


def _wanted(params: Params, stage: str, machines: set[str]) -> bool:
    """Whether a stage of dvc.lock still stands in the graph, for any machine whose results are kept."""
    kind, _, about = stage.partition("@")
    work, _, family = kind.partition("_")
    if kind in ("probe", "ceiling", "render"):
        return about in machines
    if work not in ("oracle", "check", "bench") or family not in FAMILIES:
        return True
    chosen = params.family(family)
    if work == "oracle":
        return about in chosen.grids
    rows = {f"{machine}-{row}" for machine in machines for row in chosen.implementations}
    return about in ({f"{row}-{grid}" for row in rows for grid in chosen.grids} if work == "bench" else rows)
