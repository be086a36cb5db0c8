"""Is one revision slower than another? Pairs of every chosen cell, until a look that was declared before decides.

What counts is log(head / base) of a pair. Each look's interval may miss with a share of 5 % that is set before the
first pair (bench.stats.spent_at), so that looking several times costs nothing.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import duel_cells, machine, worker
from bench.duel_pairs import Failed, Pair, Server, Slices, Whole, alone, launched
from bench.grid import Cell, Params
from bench.jobs import Job
from bench.lock import device_lock
from bench.progress import Steps, steps
from bench.stats import Estimate, hodges_lehmann, signed_rank_p, spent_at, survivors
from bench.truths import DEADLINE_S
from bench.worktrees import Side

ALPHA = 0.05  # of a cell, over all its looks; and the share of false findings among cells
MATTERS, ALIKE = 1.0, 3.0  # per cent
LOOKS, LEAST = (8, 12, 16, 24, 32, 48, 64, 96, 128), 16
LOOKS_WHOLE = (8, 16)


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: `slower`, `faster`, `same`, `inconclusive`, `could not compare`, `skipped`.

    change_percent: of head against base, with the interval of the look that decided. sees_percent: of an inconclusive
    one, the smallest effect it could have seen. p: two-sided, of an effect beyond 1 %.
    """

    cell: str
    verdict: str
    reason: str | None = None
    base_ms: float | None = None
    head_ms: float | None = None
    change_percent: Estimate | None = None
    sees_percent: float | None = None
    p: float | None = None
    looks: tuple[int, ...] = ()
    whole_processes: bool = False
    seconds: float = 0.0
    pairs: list[Pair] = field(default_factory=list)


@dataclass(frozen=True)
class Duel:
    """Who meets whom, where, and how. budget_s: of a cell. clock: wall or cpu."""

    params: Params
    identity: dict[str, Any]
    both: tuple[Side, Side]
    budget_s: float
    clock: str

    @property
    def pair_s(self) -> float:
        """How long a pair should take, so that the budget holds the least number of them and what comes before."""
        return self.budget_s / (LEAST + 2)

    @property
    def limits(self) -> dict[str, Any]:
        """Of every worker."""
        protocol = self.params.protocol
        return {"deadline_s": protocol.deadline_s, "memory_bytes": worker.memory_limit(protocol.memory_limit_gib)}

    @property
    def folder(self) -> Path:
        """Of both sides, and of whatever else is written; gone afterwards."""
        return self.both[0].overlay.parent

    def truth(self, cell: Cell) -> Path:
        """The file with the inputs and truth of a cell; the same for core and rings."""
        kind = "module" if cell.family == "module" else "core"
        return self.folder / "truths" / kind / f"{cell.workload.key}.safetensors"

    def job(self, cell: Cell, side: Side, number: int) -> dict[str, Any]:
        """What the worker of a pair is told. It has no yardstick: there is no such file."""
        threads = 1 if self.clock == "cpu" else self.identity["threads"]
        row = side.row(cell.implementation)
        assert row is not None
        job = Job(
            implementation=str(row.path),
            reference=str(side.overlay / "none.py"),
            oracle=str(self.truth(cell)),
            workload=cell.workload.as_dict(),
            world_size=cell.world_size,
            device=self.identity["device"],
            threads=machine.threads_per_rank(threads, cell.world_size),
            all_threads=threads,
            protocol=self.params.protocol.model_dump() | {"keep_memory": True},
            process=number,
        )
        return asdict(job)


def run(
    params: Params,
    identity: dict[str, Any],
    both: tuple[Side, Side],
    chosen: duel_cells.Chosen,
    *,
    budget_s: float,
    clock: str,
) -> list[Outcome]:
    """Measure all that was chosen.

    Raises:
        Failed: a side cannot be measured at all.
    """
    outcomes = [Outcome(key, "could not compare", reason) for key, reason in chosen.broken.items()]
    duel = Duel(params, identity, both, budget_s, clock)
    with ExitStack() as stack:
        with steps("duel truths", len({duel.truth(cell) for cell in chosen.cells})) as progress:
            unsolved = solve(duel, chosen.cells, progress)
        outcomes += [Outcome(key, "skipped", f"its oracle: {reason}") for key, reason in unsolved.items()]
        cells = [cell for cell in chosen.cells if cell.key not in unsolved]
        if cells:
            stack.enter_context(device_lock(identity["device"]))
        server = stack.enter_context(Server(duel.folder, **duel.limits)) if cells else None
        outcomes += [_outcome(duel, cell, server, len(cells)) for cell in cells]
    return corrected(outcomes)


def solve(duel: Duel, cells: list[Cell], progress: Steps) -> dict[str, str]:
    """Write the truth of every cell, once a workload; the reasons of those that have none."""
    files = {duel.truth(cell): cell.workload for cell in cells}
    reasons: dict[Path, str] = {}
    for path, workload in files.items():
        seed, limit = duel.params.protocol.seed, duel.limits["memory_bytes"]
        told = {"path": str(path), "kind": path.parent.name, "workload": workload.as_dict(), "seed": seed}
        told["device"] = "cpu"
        result = worker.isolated("solve_and_write", told, deadline_s=DEADLINE_S, memory_bytes=limit)
        if result["status"] != "ok":
            reasons[path] = f"{result['status']}: {result['reason']}"
        progress.step(workload.key)
    return {cell.key: reasons[duel.truth(cell)] for cell in cells if duel.truth(cell) in reasons}


def _outcome(duel: Duel, cell: Cell, server: Server | None, n_cells: int) -> Outcome:
    """One cell, whatever happens to it."""
    start = time.monotonic()
    whole = cell.family == "ring" or not duel_cells.fits_twice(cell, duel.identity)
    try:
        take, looks = _pairs(duel, cell, server, n_cells, whole=whole)
        with steps(f"duel {cell.key}", looks[-1]) as progress:
            found = decided(take, looks, progress)
    except Failed as error:
        verdict = "skipped" if error.status == "unsupported" else "could not compare"
        return Outcome(cell.key, verdict, str(error), seconds=time.monotonic() - start)
    return replace(found, cell=cell.key, whole_processes=whole, seconds=time.monotonic() - start)


def _pairs(
    duel: Duel, cell: Cell, server: Server | None, n_cells: int, *, whole: bool
) -> tuple[Callable[[int], Pair], tuple[int, ...]]:
    """How a pair of this cell is taken, and the looks."""
    rng, job = random.Random(), partial(duel.job, cell)
    if cell.family == "ring":
        base, head = (partial(launched, side, job, **duel.limits) for side in duel.both)
        return Whole(base, head, rng), LOOKS_WHOLE
    assert server is not None
    if whole:
        base, head = (partial(alone, server, side, job, duel.clock) for side in duel.both)
        return Whole(base, head, rng), LOOKS_WHOLE
    slices = Slices(server, duel.both, job, duel.clock, rng)
    return slices, looks_within(duel.budget_s, slices.calibrate(duel.pair_s), n_cells)


def looks_within(budget_s: float, pair_s: float, n_cells: int) -> tuple[int, ...]:
    """After how many pairs there is a look: as many as the budget holds, but up to 16 whatever it is.

    Of many cells, none before a single finding among them could stand.
    """
    most = max(LEAST, int(budget_s / pair_s))
    return tuple(n for n in LOOKS if n <= most and (n == LEAST or 2.0 ** (1 - n) <= ALPHA / n_cells))


def decided(take: Callable[[int], Pair], looks: Sequence[int], progress: Steps) -> Outcome:
    """Take pairs until a look decides, or until the last."""
    pairs, alphas = list[Pair](), spent_at(tuple(looks), ALPHA)
    for look, alpha in zip(looks, alphas, strict=True):
        while len(pairs) < look:
            pairs.append(take(len(pairs) + 1))
            progress.step(f"{percent(pairs[-1].value):+.1f} %")
        values = [pair.value for pair in pairs]
        found = hodges_lehmann(values, alpha)
        change = Estimate(*(percent(x) for x in (found.value, found.low, found.high)))
        verdict = verdict_of(change.low, change.high)
        if verdict != "inconclusive":
            break
    return Outcome(
        cell="",
        verdict=verdict,
        base_ms=statistics.median(pair.base_ms for pair in pairs),
        head_ms=statistics.median(pair.head_ms for pair in pairs),
        change_percent=change,
        sees_percent=_sees(change) if verdict == "inconclusive" else None,
        p=min(1.0, 2 * min(_p_beyond(values, 1), _p_beyond(values, -1))),
        looks=tuple(looks),
        pairs=pairs,
    )


def verdict_of(low: float, high: float) -> str:
    """Of an interval in per cent. Wholly within 1 % is the same even where it does not hold 0."""
    if low > MATTERS:
        return "slower"
    if high < -MATTERS:
        return "faster"
    widest = max(high, -low)
    alike = widest <= MATTERS or (low <= 0 <= high and widest < ALIKE)
    return "same" if alike else "inconclusive"


def corrected(outcomes: list[Outcome]) -> list[Outcome]:
    """Findings that do not stand among so many cells become inconclusive."""
    compared = [one for one in outcomes if one.p is not None]
    stands = dict(
        zip((one.cell for one in compared), survivors([one.p or 0.0 for one in compared], ALPHA), strict=True)
    )

    def of(one: Outcome) -> Outcome:
        if one.verdict not in ("slower", "faster") or stands[one.cell] or one.change_percent is None:
            return one
        reason = f"{one.verdict} by itself, but p = {one.p:.2g} does not stand among {len(compared)} cells"
        return replace(one, verdict="inconclusive", reason=reason, sees_percent=_sees(one.change_percent))

    return [of(one) for one in outcomes]


def percent(log_ratio: float) -> float:
    """Head against base: +100 is twice the time."""
    return 100 * float(np.expm1(log_ratio))


def _sees(change: Estimate) -> float:
    return (change.high - change.low) / 2 + MATTERS


def _p_beyond(values: list[float], sign: int) -> float:
    """Of an effect beyond 1 % in one direction."""
    margin = float(np.log1p(sign * MATTERS / 100))
    return signed_rank_p([sign * (x - margin) for x in values])
