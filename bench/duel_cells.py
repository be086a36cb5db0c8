"""Which cells a duel measures, and why not the others."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from bench import worker
from bench.grid import FAMILIES, Cell, Params, cells
from bench.machine import why_no_ranks
from bench.records import LEFT_OUT
from bench.worktrees import Side

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_WORKER_BYTES = 1 << 29  # of a worker without any cell, generously


@dataclass
class Chosen:
    """What is measured, and what is not, with the reason.

    rows: those that cannot be, or need not be compared. skipped: cells of other rows. broken: cells that cannot be
    compared though they should.
    """

    cells: list[Cell] = field(default_factory=list)
    rows: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


def choose(
    params: Params, identity: dict[str, Any], both: tuple[Side, Side], pattern: str | None, clock: str = "wall"
) -> Chosen:
    """By default the cells whose code differs; those that match the pattern; of one revision twice, the seed grid."""
    chosen = Chosen(rows=_on_one_side(params, both))
    rows = [
        (family, name)
        for family in FAMILIES
        for name in params.family(family).implementations
        if name not in chosen.rows
    ]
    changed = {name for family, name in rows if both[0].fingerprint(name, family) != both[1].fingerprint(name, family)}
    every = [
        cell
        for family, name in rows
        for grid in params.family(family).grids
        for cell in cells(params, family, name, grid)
    ]
    if pattern is not None:
        wanted = [cell for cell in every if re.search(pattern, cell.key)]
    elif changed or both[0].commit != both[1].commit:
        wanted = [cell for cell in every if cell.implementation in changed]
        chosen.rows |= {name: "the same code on both sides" for _, name in rows if name not in changed}
    else:
        first = next(iter(params.families.core.grids))
        wanted = [cell for cell in every if cell.family == "core" and cell.grid == first]
    _sort_out(chosen, wanted, params, identity, both, clock)
    return chosen


def fits_twice(cell: Cell, identity: dict[str, Any]) -> bool:
    """Whether two workers of a cell find memory at the same time, by a generous estimate."""
    on_gpu = identity["device"] == "cuda"
    available = int(identity["gpu_memory_gib"] * 0.9 * 2**30) if on_gpu else _available_bytes()
    return 2 * needed_bytes(cell) <= available


def needed_bytes(cell: Cell) -> int:
    """Of one worker, the judge's float64 and one set of scores for each direction included, though few rows hold it.

    Scores count three times: so much a heap that keeps what is freed may take for them.
    """
    w, item = cell.workload, _ITEM_BYTES[cell.workload.dtype]
    out = w.batch * w.seq_len * w.embed_dim
    given = out + 2 * w.batch * w.kv_seq_len * w.n_kv_heads * w.head_dim
    if cell.family == "module":
        given = 3 * out + 4 * w.embed_dim**2
    if w.backward:
        given, out = given + out, out + given
    scores = 3 * w.batch * w.n_heads * w.seq_len * w.kv_seq_len * (3 if w.backward else 2)
    return _WORKER_BYTES + 2 * (given + out) * item + 4 * out * 8 + scores * max(item, 4)


def _on_one_side(params: Params, both: tuple[Side, Side]) -> dict[str, str]:
    """Rows that not both sides have."""
    found = {}
    for name in params.implementations():
        having = [side for side in both if side.row(name) is not None]
        if len(having) < 2:
            found[name] = f"only in {having[0].words}" if having else "on neither side"
    return found


def _sort_out(
    chosen: Chosen, wanted: list[Cell], params: Params, identity: dict[str, Any], both: tuple[Side, Side], clock: str
) -> None:
    first: dict[Any, Cell] = {}
    for cell in wanted:
        same = first.setdefault((cell.implementation, cell.workload, cell.world_size), cell)
        excluded = params.grids[cell.grid].why_excluded(cell.workload, identity["device"], cell.implementation)
        if broken := _broken(cell, both):
            chosen.broken[cell.key] = broken
        elif excluded:
            chosen.skipped[cell.key] = f"{LEFT_OUT}{excluded}"
        elif why := _why_not(cell, identity, both, clock):
            chosen.skipped[cell.key] = why
        elif same is not cell and same.key not in chosen.skipped:
            chosen.skipped[cell.key] = f"the same as {same.key}"
        else:
            chosen.cells.append(cell)


def _broken(cell: Cell, both: tuple[Side, Side]) -> str | None:
    for side in both:
        row = side.row(cell.implementation)
        assert row is not None
        if row.fault:
            return f"{side.name} ({side.words}): {row.fault}"
        if row.kind != cell.family:
            return f"{side.name} ({side.words}): its KIND is {row.kind}, not {cell.family}"
    return None


def _why_not(cell: Cell, identity: dict[str, Any], both: tuple[Side, Side], clock: str) -> str | None:
    if cell.family == "ring" and clock == "cpu":
        return "ranks wait for each other: their processor time says little"
    if identity["device"] == "cpu" and cell.world_size > identity["cpu_count"]:
        return f"{cell.world_size} ranks on {identity['cpu_count']} cores: oversubscribed"
    if reason := why_no_ranks(identity, cell.world_size):
        return reason
    for side in both:
        row = side.row(cell.implementation)
        assert row is not None
        if reason := row.why_not(cell.workload, identity["device"]):
            return f"{side.name}: {reason}"
    return None


def _available_bytes() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:")) << 10
    except (OSError, StopIteration):
        return worker.memory_limit(0)
