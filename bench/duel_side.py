"""A worker of a duel: a row of one side on one cell, told what to do by the driver (bench.duel_pairs)."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from attn import registry
from attn.contract import Unsupported, Workload
from bench import oracle, solved
from bench.calls import make
from bench.device import open_device
from bench.jobs import Job
from bench.judge import judge_call
from bench.team import Solo
from bench.timing import warm_up
from bench.watch import Watch, WrongResult
from bench.worker import status_of


class MoreWork:
    """A call that is made twice in k of every n times, evenly spread: a slow-down whose truth is known."""

    def __init__(self, call: Callable[[], object], k: int, n: int) -> None:
        self._call, self._k, self._n, self._owed = call, k, n, 0

    def __call__(self) -> None:
        """Once, or twice where that is due."""
        self._call()
        self._owed += self._k
        if self._owed >= self._n:
            self._owed -= self._n
            self._call()


class Contestant:
    """A row on one cell, in a process of its own."""

    def __init__(self, fields: dict[str, Any], extra: list[int]) -> None:
        self.job = Job(**fields)
        torch.set_num_threads(self.job.threads)
        torch.manual_seed(self.job.protocol["seed"] + self.job.process)
        self.device = open_device(self.job.device)
        self.workload = Workload.from_dict(self.job.workload)
        self.implementation = registry.read(Path(self.job.implementation))
        self.first = oracle.in_precision(solved.read(Path(self.job.oracle)), self.job)
        with registry.third_party():
            self.call = make(self.implementation, self.workload, self.first.inputs, self.job.device)
        self.watch = Watch(self.call, self.first, Solo(), self.job.protocol["seed"] + self.job.process)
        self.timed = MoreWork(self.call, *extra) if extra[0] else self.call

    def prepare(self) -> dict[str, Any]:
        """Judge, warm up; milliseconds of a call. From here on nothing is collected."""
        with registry.third_party():
            self.call()
        verdict = judge_call(self.call, self.first, Solo())
        if not verdict.right:
            return {"status": "incorrect", "reason": verdict.reason}
        self.call.forget()
        calls = warm_up(lambda n: self.device.elapsed_ms(self.timed, n), self.job.protocol, lambda x: x)
        gc.collect()
        gc.disable()
        return {"status": "ok", "ms_per_call": self.device.elapsed_ms(self.timed, calls) / calls}

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked."""
        match asked["do"]:
            case "prepare":
                return self.prepare()
            case "slice":
                return self.slice(asked["calls"])
            case _:
                return self.end()

    def slice(self, calls: int) -> dict[str, Any]:
        """So many calls in a row: wall milliseconds, and processor milliseconds of all threads.

        On inputs that this slice alone has; what its last call leaves is judged.
        """
        self.watch.new_sample()
        self.watch.before()
        before = time.process_time_ns()
        wall_ms = self.device.elapsed_ms(self.timed, calls)
        cpu_ms = (time.process_time_ns() - before) / 1e6
        try:
            self.watch.after()
        except WrongResult as wrong:
            return {"status": "incorrect", "reason": f"in a timed call: {wrong}"}
        return {"status": "ok", "wall": wall_ms, "cpu": cpu_ms}

    def end(self) -> dict[str, Any]:
        """Judge again, on other inputs in the same buffers."""
        again = solved.mirrored(self.implementation.kind, self.first, self.workload.mask)
        self.call.refill(again.inputs)
        self.call()
        verdict = judge_call(self.call, again, Solo())
        if not verdict.right:
            return {"status": "incorrect", "reason": f"after timing, on fresh inputs: {verdict.reason}"}
        return {"status": "ok"}


def serve(connection: Connection) -> None:
    """What a worker does: answer until it is told to end, or until nobody is there to ask."""
    assert registry.IMPL_DIR.is_relative_to(Path.cwd()), f"another attn was imported: {registry.IMPL_DIR}"
    contestant: Contestant | None = None
    while True:
        asked = json.loads(connection.recv_bytes())
        try:
            if asked["do"] == "prepare":
                contestant = Contestant(asked["job"], asked.get("extra", [0, 1]))
            assert contestant is not None
            result = contestant.answer(asked)
        except Unsupported as error:
            result = {"status": "unsupported", "reason": str(error)}
        except Exception as error:  # whatever an implementation raises is a status, not our end
            traceback.print_exc()
            result = status_of(error)
        connection.send_bytes(json.dumps(result).encode())
