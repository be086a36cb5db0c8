"""Does a duel say the truth? Duels of this tree against itself, some with work added to one side, all recorded.

`aa`: nothing differs, and whatever is called slower or faster is a false alarm. `power`: head really makes k calls
more in every n. Every duel is a whole one: worktrees, truth, server and workers of its own, as `bench duel HEAD HEAD`.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from attn.contract import Workload
from bench import closure, guard, rivals, worktrees
from bench.duel import Duel, Outcome, decided, looks_within, solve
from bench.duel_pairs import Failed, Pair, Server, Slices, in_slices
from bench.grid import Cell, Params
from bench.lock import device_lock
from bench.progress import Steps
from bench.selftest_records import Condition, Fought, Header, Told, Writer, now, samples_of

HEAD = "HEAD"
_BUSY = "while True: sum(range(100_000))"
_CODE = ("duel.py", "duel_pairs.py", "duel_server.py", "duel_side.py", "stats.py")  # what takes slices and decides


@dataclass(frozen=True)
class Small:
    """A cell whose calls are so short that a hundred fit into a slice. one_thread: or as many as params.yaml says."""

    implementation: str
    seq_len: int
    n_heads: int
    one_thread: bool

    @property
    def cell(self) -> Cell:
        """As if it were of a grid."""
        workload = Workload(1, self.seq_len, self.n_heads, self.n_heads, 64, "float32", "full", "forward")
        return Cell("core", self.implementation, "selftest", workload)


SMALL = (
    Small("sdpa", 128, 4, one_thread=True),
    Small("improved", 128, 4, one_thread=False),
    Small("improved", 64, 8, one_thread=True),
    Small("sdpa", 128, 8, one_thread=False),
)


def header(identity: dict[str, Any]) -> Header:
    """What a record of this machine and this code begins with.

    Of the code, what a duel's truth hangs on, and not all that it imports: a self-test takes hours, over days of work.
    """
    code = closure.alone(*(closure.ROOT / "bench" / name for name in _CODE))
    return Header(machine=identity, code=code, rivals=rivals.versions())


def outstanding(fought: Sequence[Fought], conditions: Sequence[Condition], duels: int) -> list[tuple[Condition, int]]:
    """Which duels are still to be fought, so that there are so many of each condition; in turns."""
    taken = {(one.condition, one.number) for one in fought}
    wanted = ((condition, number) for number in range(duels) for condition in conditions)
    return [one for one in wanted if one not in taken]


def run(
    params: Params,
    identity: dict[str, Any],
    todo: Sequence[tuple[Condition, int]],
    writer: Writer,
    progress: Steps,
) -> None:
    """Fight and record, one after the other.

    Raises:
        NoSuchRevision: this is no git repository.
    """
    for condition, number in todo:
        line = fight(params, identity, condition, number)
        writer.add(line)
        progress.step(_in_words(line))


def fight(params: Params, identity: dict[str, Any], condition: Condition, number: int) -> Fought:
    """One duel. Every second one has a busy process beside it; the cells come in turn."""
    busy, small = number % 2 == 1, SMALL[number // 2 % len(SMALL)]
    start, at, load = time.monotonic(), now(), round(os.getloadavg()[0], 2)
    about: dict[str, Any] = {"condition": condition, "number": number, "busy": busy, "at": at, "load": load}
    with worktrees.sides(HEAD, HEAD) as both, _beside(busy=busy):
        duel = Duel(params, identity, both, condition.budget_s, "cpu" if small.one_thread else "wall")
        threads = duel.job(small.cell, both[0], 0)["threads"]
        about |= {"cell": small.cell.key, "threads": threads}
        pairs = list[Pair]()
        try:
            about |= _measured(duel, small, condition, pairs)
        except Failed as error:
            return Fought(**about, failed=str(error), seconds=round(time.monotonic() - start, 1))
    about |= {"seconds": round(time.monotonic() - start, 1), "samples": [samples_of(pair) for pair in pairs]}
    return Fought(**about, rivals=rivals.verdicts(pairs))


def _measured(duel: Duel, small: Small, condition: Condition, pairs: list[Pair]) -> dict[str, Any]:
    """What both clocks say of the same pairs, which are left in `pairs`.

    Raises:
        Failed: someone gave no time.
    """
    for reason in solve(duel, [small.cell], _Silent()).values():
        raise Failed("its oracle", {"status": "not_measured", "reason": reason})
    with device_lock(duel.identity["device"]), Server(duel.folder, **duel.limits) as server:
        job = partial(duel.job, small.cell)
        slices = Slices(server, duel.both, job, "wall", random.Random(), condition.extra)
        looks = looks_within(duel.budget_s, slices.calibrate(duel.pair_s), 1)
        take = _kept(slices, pairs)
        wall = decided(take, looks, _Silent())
        cpu = decided(lambda n: in_slices(take(n).blocks, "cpu"), looks, _Silent()) if small.one_thread else None
    return {"calls": slices.calls, "wall": _told(wall), "cpu": _told(cpu) if cpu else None}


def _kept(slices: Slices, pairs: list[Pair]) -> Callable[[int], Pair]:
    """Pairs by number, each taken once, whoever asks."""

    def take(number: int) -> Pair:
        while len(pairs) < number:
            pairs.append(slices(len(pairs) + 1))
        return pairs[number - 1]

    return take


def _told(found: Outcome) -> Told:
    change = found.change_percent
    assert change is not None
    return Told(
        verdict=found.verdict,  # type: ignore[arg-type]  # checked there
        change_percent=change.value,
        low_percent=change.low,
        high_percent=change.high,
        pairs=len(found.pairs),
    )


@contextmanager
def _beside(*, busy: bool) -> Iterator[None]:
    """A process that computes all the time, if that is wanted; it dies with us."""
    if not busy:
        yield
        return
    process = subprocess.Popen(
        [sys.executable, "-c", _BUSY],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=partial(guard.die_with_parent, os.getpid()),  # noqa: PLW1509  # only a prctl call, no lock is taken
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _in_words(line: Fought) -> str:
    about = f"+{line.condition.truth_percent:g} %, {line.cell}{', busy' if line.busy else ''}, {line.seconds:.0f} s"
    if line.wall is None:
        return f"{about}: {line.failed}"
    told = line.wall
    return f"{about}: {told.verdict} {told.change_percent:+.1f} [{told.low_percent:+.1f}, {told.high_percent:+.1f}]"


class _Silent(Steps):
    """Progress is told a duel, not a pair."""

    def __init__(self) -> None:
        """Without the line that others begin with."""

    def step(self, detail: str) -> None:
        """Nothing is said."""
