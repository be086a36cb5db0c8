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
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from bench import guard, launch, worker
from bench.worktrees import Side

SLICE_MS, BLOCKS = 40.0, 16
PAIR_MS = 4000.0  # of slices: where a single call takes longer than a slice should, there are fewer blocks
LEAST_BLOCKS = 2
READY_S = 120.0

MESSAGE = struct.Struct("<cq")  # to a server: what is asked, and of which process; back: the same, with its answer
READY, START, END = b"r", b"s", b"e"

JobOf = Callable[[Side, int], dict[str, Any]]  # side, number of the pair -> what its worker is told


class Failed(Exception):
    """A side gave no time: `status` as of a record, and the reason with the side's name."""

    def __init__(self, side: Side, result: dict[str, Any]) -> None:
        super().__init__(f"{side.name} ({side.words}): {result['status']}: {result['reason']}")
        self.status: str = result["status"]


@dataclass(frozen=True)
class Pair:
    """What a pair gave: `value` is log(head / base); times are milliseconds a call.

    blocks: of each, its order and the four slices in that order; of whole processes, one block of medians.
    """

    value: float
    base_ms: float
    head_ms: float
    blocks: list[tuple[str, list[float]]]


class Server:
    """The process of a side that forks its workers; see bench.duel_side."""

    def __init__(self, side: Side, deadline_s: float, memory_bytes: int) -> None:
        self.side, self.deadline_s = side, deadline_s
        self.log = side.overlay / "log"
        self._control, theirs = socket.socketpair()
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        with theirs, self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.duel_side", str(theirs.fileno()), str(memory_bytes)],
                cwd=side.overlay,
                env={**kept, "PYTHONHASHSEED": "0"},  # both sides alike
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=guard.die_with_parent,  # noqa: PLW1509  # only a prctl call, no lock is taken
            )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        """End it with its worker."""
        guard.kill(guard.descendants(self._process.pid) | {self._process.pid})
        self._process.wait()
        self._control.close()

    def wait_until_ready(self) -> None:
        """It has imported everything.

        Raises:
            Failed: it could not; the bench of the work tree and the side's attn do not fit.
        """
        self._control.settimeout(READY_S)
        self._answer("its attn does not fit the bench of the work tree")

    def ask(self, what: bytes, process: int = 0, descriptors: tuple[int, ...] = ()) -> int:
        """Its answer.

        Raises:
            Failed: it is gone.
        """
        with suppress(BrokenPipeError):
            socket.send_fds(self._control, [MESSAGE.pack(what, process)], descriptors)
        return self._answer("the process that forks its workers is gone")

    def _answer(self, else_: str) -> int:
        try:
            message = self._control.recv(MESSAGE.size, socket.MSG_WAITALL)
        except OSError:
            message = b""
        if len(message) < MESSAGE.size:
            reason = f"{else_}; last output: {worker.tail(str(self.log)) or 'none'}"
            raise Failed(self.side, {"status": "crashed", "reason": reason})
        return int(MESSAGE.unpack(message)[1])


class Worker:
    """A fresh process of a side."""

    def __init__(self, server: Server) -> None:
        self._server, self._killed_before = server, worker.oom_kills()
        os.truncate(server.log, 0)
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = server.ask(START, descriptors=(theirs.fileno(),))

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
                raise Failed(self._server.side, {"status": "timeout", "reason": reason})
            result = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise Failed(self._server.side, self._death()) from None
        if result["status"] != "ok":
            raise Failed(self._server.side, result)
        return dict(result)

    def _death(self) -> dict[str, Any]:
        """Of a process that closed its end; it is waited for when this worker is left."""
        process, self._process = self._process, 0
        exit_code = self._server.ask(END, process)
        log = worker.tail(str(self._server.log))
        return worker.death(exit_code, log, oom=worker.oom_kills() > self._killed_before)


class Slices:
    """Pairs of workers that take turns. `calls` a slice and `blocks` are set once, by `calibrate`."""

    def __init__(self, servers: tuple[Server, Server], job: JobOf, clock: str, rng: random.Random) -> None:
        self._servers, self._job, self._clock, self._rng = servers, job, clock, rng
        self.calls = self.blocks = 1

    def calibrate(self) -> float:
        """One pair that counts for nothing; about how many seconds a pair will take."""
        start = time.monotonic()
        with ExitStack() as stack:
            workers, ms = self._prepared(stack, 0)
            ms_per_call = math.sqrt(ms["A"] * ms["B"])
            self.calls = max(1, round(SLICE_MS / ms_per_call))
            block_ms = 4 * self.calls * ms_per_call
            self.blocks = max(LEAST_BLOCKS, min(BLOCKS, int(PAIR_MS / block_ms)))
            self._block(workers)
            self._end(workers)
        return time.monotonic() - start + (self.blocks - 1) * block_ms / 1e3

    def __call__(self, number: int) -> Pair:
        """A pair: the median of its blocks."""
        with ExitStack() as stack:
            workers, _ = self._prepared(stack, number)
            blocks = [self._block(workers) for _ in range(self.blocks)]
            self._end(workers)
        return in_slices(blocks)

    def _prepared(self, stack: ExitStack, number: int) -> tuple[dict[str, Worker], dict[str, float]]:
        """Workers that have been judged and are warm, A and B, started in random order; their milliseconds a call."""
        workers, ms = dict[str, Worker](), dict[str, float]()
        for letter in self._rng.sample("AB", 2):
            server = self._servers["AB".index(letter)]
            workers[letter] = stack.enter_context(Worker(server))
            ms[letter] = workers[letter].ask("prepare", job=self._job(server.side, number))["ms_per_call"]
        return workers, ms

    def _block(self, workers: dict[str, Worker]) -> tuple[str, list[float]]:
        order = self._rng.choice(("ABBA", "BAAB"))
        slices = (workers[letter].ask("slice", calls=self.calls)[self._clock] for letter in order)
        return order, [ms / self.calls for ms in slices]

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
        return Pair(math.log(ms["B"] / ms["A"]), ms["A"], ms["B"], [("".join(ms), list(ms.values()))])


def alone(server: Server, job: JobOf, clock: str, number: int) -> float:
    """Milliseconds of a call in a worker that has the machine for itself: the median of its slices."""
    with Worker(server) as one:
        ms_per_call: float = one.ask("prepare", job=job(server.side, number))["ms_per_call"]
        calls = max(1, round(SLICE_MS / ms_per_call))
        count = max(2 * LEAST_BLOCKS, min(2 * BLOCKS, int(PAIR_MS / (2 * calls * ms_per_call))))
        slices: list[float] = [one.ask("slice", calls=calls)[clock] / calls for _ in range(count)]
        one.ask("end")
    return statistics.median(slices)


def launched(side: Side, job: JobOf, number: int, *, deadline_s: float, memory_bytes: int) -> float:
    """Milliseconds of a call of ranks: the median of a launch's samples."""
    told = job(side, number)
    (result,) = launch.run(
        "measure", [told], told["world_size"], deadline_s=deadline_s, memory_bytes=memory_bytes, where=side.overlay
    )
    if result["status"] != "ok":
        raise Failed(side, result)
    return float(statistics.median(result["series"]["samples_ms"]))


def in_slices(blocks: list[tuple[str, list[float]]]) -> Pair:
    """The pair that these blocks make: of each the log ratio of its sums, and of those the median."""
    sums = [
        {letter: sum(ms for one, ms in zip(order, slices, strict=True) if one == letter) for letter in "AB"}
        for order, slices in blocks
    ]
    return Pair(
        value=statistics.median(math.log(one["B"] / one["A"]) for one in sums),
        base_ms=statistics.median(one["A"] / 2 for one in sums),
        head_ms=statistics.median(one["B"] / 2 for one in sums),
        blocks=blocks,
    )
