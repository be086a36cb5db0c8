"""Where a ring's time goes: its computation alone, its communication alone, the two in sequence, and as it really is.

Diagnostics: what these calls leave is not judged, and their times are in no figure but those of `bench.losses`.
"""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from attn.ring import merge
from attn.ring.communicator import Sent
from bench.calls import RingCall
from bench.device import Cpu, Do
from bench.replay import Alone, InSequence, Recording
from bench.team import Team

LEAST_ROUNDS, MOST_ROUNDS = 3, 40
Sample = Callable[[int], float]


def measure(call: RingCall, device: Cpu, team: Team, yardstick: Sample, protocol: dict[str, Any]) -> dict[str, Any]:
    """Rounds of one call each way, in random order, all ranks lined up before each; ms by rank and round, on rank 0.

    `compute`: the schedule with a transport that moves nothing and waits for nobody. `communication`: what the
    schedule asks of its transport, asked again without computing. `sequence`: the schedule, each rotation waited for
    at once. `real`: the schedule. `merge`: of `compute`, what attn.ring.merge took. `ideal`: the yardstick, in one
    process. One rank has nothing to communicate, and a row that sends for itself asks nothing of a
    transport: `communication` and `sequence` are not there.
    """
    clock = _MergeClock(device)
    runs = _runs(call, clock)
    order, times = random.Random(protocol["seed"]), {name: list[float]() for name in (*runs, "ideal")}
    merges, start = list[float](), time.perf_counter()
    for taken in range(MOST_ROUNDS + 1):
        spent = time.perf_counter() - start > protocol["budget_s"]
        if team.agree(taken > LEAST_ROUNDS and spent):
            break
        for name in order.sample(list(times), len(times)):
            milliseconds = yardstick(1) if name == "ideal" else device.elapsed_ms(runs[name], 1, team.line_up)
            if taken:  # the first round warms up
                times[name].append(milliseconds)
                merges += [clock.spent_ms()] if name == "compute" else []
    call.comm.transport = team.transport
    call.forget()
    return {
        "ideal_ms": times.pop("ideal"),
        "ranks_ms": {name: team.gather(of_mode) for name, of_mode in (times | {"merge": merges}).items()},
    }


def _runs(call: RingCall, clock: _MergeClock) -> dict[str, Do]:
    comm, real = call.comm, call.comm.transport

    def through(transport: Any) -> Do:
        def run() -> None:
            comm.transport = transport
            call()

        return run

    def compute() -> None:
        with clock:
            alone()

    alone = through(Alone(real) if real else None)
    if real is None:
        return {"real": through(real), "compute": compute}
    recording, comm.sent = Recording(real), Sent()
    through(recording)()
    if not comm.messages:
        return {"real": through(real), "compute": compute}
    return {
        "real": through(real),
        "compute": compute,
        "communication": recording.replay(),
        "sequence": through(InSequence(real)),
    }


class _MergeClock:
    """While it is entered, the functions of attn.ring.merge are timed, the outermost where one calls another."""

    def __init__(self, device: Cpu) -> None:
        self._device, self._depth = device, 0
        self._spans: list[tuple[Any, Any]] = []
        public = inspect.getmembers(merge, inspect.isfunction)
        self._plain = {name: f for name, f in public if f.__module__ == merge.__name__ and not name.startswith("_")}

    def __enter__(self) -> None:
        self._spans = []
        for name, function in self._plain.items():
            setattr(merge, name, self._timed(function))

    def __exit__(self, *_: object) -> None:
        for name, function in self._plain.items():
            setattr(merge, name, function)

    def spent_ms(self) -> float:
        """In the last call."""
        return sum(self._device.between_ms(*span) for span in self._spans)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **more: Any) -> Any:
            with self._span():
                return function(*arguments, **more)

        return timed

    @contextmanager
    def _span(self) -> Iterator[None]:
        start = None if self._depth else self._device.mark()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._spans.append((start, self._device.mark()))
