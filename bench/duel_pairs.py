"""Pairs of samples, one a side: what a duel rests on, since samples of one process share its fate.

In slices: two fresh workers, started in random order, both alive, one running at a time, in blocks ABBA or BAAB.
Whole: one process (or launch of ranks) after the other, in random order. A is base, B is head.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import closure, guard, launch, worker
from bench.duel_server import END, MESSAGE, START
from bench.worktrees import Side

CLOCKS = ("wall", "cpu")
SLICE_MS, BLOCKS = 40.0, 16
PAIR_S = 4.0  # of slices: where a single call takes longer than a slice should, there are fewer blocks
LEAST_BLOCKS = 2
READY_S = 120.0

# Threads that wait by spinning, where another one wants the processor, made equal code differ threefold.
STEADY = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}

JobOf = Callable[[Side, int], dict[str, Any]]  # side, number of the pair -> what its worker is told
Block = tuple[str, list[float], list[float]]  # order of its slices; of each in that order, wall and processor ms a call
NOTHING = (0, 1)


class Failed(Exception):
    """Someone gave no time: `status` as of a record, and the reason with the name of the side."""

    def __init__(self, who: str, result: dict[str, Any]) -> None:
        super().__init__(f"{who}: {result['status']}: {result['reason']}")
        self.status: str = result["status"]


@dataclass(frozen=True)
class Pair:
    """What a pair gave: `value` is log(head / base); times are milliseconds a call, by the clock that was asked for.

    blocks: all its slices; of whole processes, one block of their medians by that clock alone.
    """

    value: float
    base_ms: float
    head_ms: float
    blocks: list[Block]


class Server:
    """The process that forks the workers of both sides; see bench.duel_server. Its log is in `folder`."""

    def __init__(self, folder: Path, deadline_s: float, memory_bytes: int) -> None:
        self.deadline_s, self._log = deadline_s, folder / "server.log"
        self._control, theirs = socket.socketpair()
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        with theirs, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.duel_server", str(theirs.fileno()), str(memory_bytes)],
                cwd=closure.ROOT,
                env=kept | STEADY,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(guard.die_with_parent, os.getpid()),  # noqa: PLW1509  # only a prctl call, no lock is taken
            )

    def __enter__(self) -> Server:
        """It has imported everything."""
        self._control.settimeout(READY_S)
        try:
            self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it with its workers."""
        guard.kill(guard.descendants(self._process.pid) | {self._process.pid})
        self._process.wait()
        self._control.close()

    def ask(self, what: bytes, process: int = 0, descriptors: tuple[int, ...] = ()) -> int:
        """Its answer.

        Raises:
            Failed: it is gone.
        """
        with suppress(BrokenPipeError):
            socket.send_fds(self._control, [MESSAGE.pack(what, process)], descriptors)
        return self._answer()

    def _answer(self) -> int:
        try:
            message = self._control.recv(MESSAGE.size, socket.MSG_WAITALL)
        except OSError:
            message = b""
        if len(message) < MESSAGE.size:
            said = worker.tail(str(self._log)) or "none"
            raise Failed("the server of workers", {"status": "crashed", "reason": f"it is gone; last output: {said}"})
        return int(MESSAGE.unpack(message)[1])


class Worker:
    """A fresh process of a side."""

    def __init__(self, server: Server, side: Side) -> None:
        self._server, self._who, self._killed_before = server, f"{side.name} ({side.words})", worker.oom_kills()
        self._log = side.overlay / "log"
        self._log.write_bytes(b"")
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = server.ask(START, descriptors=(theirs.fileno(),))
        self._connection.send_bytes(str(side.overlay).encode())

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        if self._process:
            self._server.ask(END, self._process)

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """Its answer.

        Raises:
            Failed: it died, hung, or says that it is not ok.
        """
        try:
            self._connection.send_bytes(json.dumps({"do": do, **more}).encode())
            if not self._connection.poll(self._server.deadline_s):
                reason = f"no result within its deadline of {self._server.deadline_s:g} s"
                raise Failed(self._who, {"status": "timeout", "reason": reason})
            result = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise Failed(self._who, self._death()) from None
        if result["status"] != "ok":
            raise Failed(self._who, result)
        return dict(result)

    def _death(self) -> dict[str, Any]:
        """Of a process that closed its end; it is waited for here, not when this worker is left."""
        process, self._process = self._process, 0
        exit_code = self._server.ask(END, process)
        return worker.death(exit_code, worker.tail(str(self._log)), oom=worker.oom_kills() > self._killed_before)


class Slices:
    """Pairs of workers that take turns. `calls` a slice and the seconds of a pair are set once, by `calibrate`.

    A pair has fewer blocks where its time is spent before, as on a busy machine: pairs are what a duel counts. Which
    side is the slower one does not matter for when it ends, since a block holds both alike.

    extra: (k, n) lets head make k calls more in every n, for real, so that a known truth can be looked for.
    """

    def __init__(
        self,
        server: Server,
        both: tuple[Side, Side],
        job: JobOf,
        clock: str,
        rng: random.Random,
        extra: tuple[int, int] = NOTHING,
    ) -> None:
        self._server, self._both, self._job, self._clock, self._rng = server, both, job, clock, rng
        self._extra = {"A": NOTHING, "B": extra}
        self.calls, self._wanted_s = 1, 0.0

    def calibrate(self, wanted_s: float) -> float:
        """One pair that counts for nothing; how many seconds, up to about `wanted_s`, each later one will take."""
        start, multiple = time.monotonic(), self._extra["B"][1]
        with ExitStack() as stack:
            workers, ms = self._prepared(stack, 0)
            ms_per_call = math.sqrt(ms["A"] * ms["B"])
            self.calls = multiple * max(1, round(SLICE_MS / ms_per_call / multiple))
            before = time.monotonic()
            self._block(workers)
            block_s = time.monotonic() - before
            self._end(workers)
        self._wanted_s, around_s = wanted_s, time.monotonic() - start - block_s
        blocks = max(LEAST_BLOCKS, min(BLOCKS, int(min(wanted_s - around_s, PAIR_S) / block_s)))
        return around_s + blocks * block_s

    def __call__(self, number: int) -> Pair:
        """A pair: the median of its blocks."""
        start = time.monotonic()
        with ExitStack() as stack:
            workers, _ = self._prepared(stack, number)
            ready, blocks = time.monotonic(), list[Block]()
            end = min(start + self._wanted_s, ready + PAIR_S)
            while len(blocks) < BLOCKS and (len(blocks) < LEAST_BLOCKS or _another(ready, len(blocks)) <= end):
                blocks.append(self._block(workers))
            self._end(workers)
        return in_slices(blocks, self._clock)

    def _prepared(self, stack: ExitStack, number: int) -> tuple[dict[str, Worker], dict[str, float]]:
        """Workers that have been judged and are warm, A and B, started in random order; their milliseconds a call."""
        workers, ms = dict[str, Worker](), dict[str, float]()
        for letter in self._rng.sample("AB", 2):
            side = self._both["AB".index(letter)]
            workers[letter] = stack.enter_context(Worker(self._server, side))
            asked = {"job": self._job(side, number), "extra": self._extra[letter]}
            ms[letter] = workers[letter].ask("prepare", **asked)["ms_per_call"]
        return workers, ms

    def _block(self, workers: dict[str, Worker]) -> Block:
        order = self._rng.choice(("ABBA", "BAAB"))
        slices = [workers[letter].ask("slice", calls=self.calls) for letter in order]
        wall, cpu = ([one[clock] / self.calls for one in slices] for clock in CLOCKS)
        return order, wall, cpu

    def _end(self, workers: dict[str, Worker]) -> None:
        for one in workers.values():
            one.ask("end")


class Whole:
    """Pairs of processes, one after the other; each gives the milliseconds of a call."""

    def __init__(self, base: Callable[[int], float], head: Callable[[int], float], rng: random.Random) -> None:
        self._take, self._rng = {"A": base, "B": head}, rng

    def __call__(self, number: int) -> Pair:
        """A pair, in random order."""
        ms = {letter: self._take[letter](number) for letter in self._rng.sample("AB", 2)}
        return Pair(math.log(ms["B"] / ms["A"]), ms["A"], ms["B"], [("".join(ms), list(ms.values()), [])])


def _another(start: float, blocks: int) -> float:
    """When one block more would be over, if it takes as long as these did on average."""
    now = time.monotonic()
    return now + (now - start) / blocks


def alone(server: Server, side: Side, job: JobOf, clock: str, number: int) -> float:
    """Milliseconds of a call in a worker that has the machine for itself: the median of its slices."""
    with Worker(server, side) as one:
        ms_per_call: float = one.ask("prepare", job=job(side, number))["ms_per_call"]
        calls = max(1, round(SLICE_MS / ms_per_call))
        count = max(2 * LEAST_BLOCKS, min(2 * BLOCKS, int(1e3 * PAIR_S / (2 * calls * ms_per_call))))
        slices: list[float] = [one.ask("slice", calls=calls)[clock] / calls for _ in range(count)]
        one.ask("end")
    return statistics.median(slices)


def launched(side: Side, job: JobOf, number: int, *, deadline_s: float, memory_bytes: int) -> float:
    """Milliseconds of a call of ranks: the median of a launch's samples."""
    told = job(side, number)
    limits: dict[str, Any] = {"deadline_s": deadline_s, "memory_bytes": memory_bytes}
    (result,) = launch.run("measure", [told], told["world_size"], **limits, where=side.overlay, environment=STEADY)
    if result["status"] != "ok":
        raise Failed(f"{side.name} ({side.words})", result)
    return float(statistics.median(result["series"]["samples_ms"]))


def in_slices(blocks: list[Block], clock: str) -> Pair:
    """The pair that these blocks make by a clock: of each the log ratio of its sums, and of those the median."""
    which = CLOCKS.index(clock)
    sums = [
        {letter: sum(ms for one, ms in zip(order, slices[which], strict=True) if one == letter) for letter in "AB"}
        for order, *slices in blocks
    ]
    return Pair(
        value=statistics.median(math.log(one["B"] / one["A"]) for one in sums),
        base_ms=statistics.median(one["A"] / 2 for one in sums),
        head_ms=statistics.median(one["B"] / 2 for one in sums),
        blocks=blocks,
    )
