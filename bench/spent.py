"""Where the time of a stage goes: a clock that is in one phase at any moment, so that its phases add up to all of it.

The phases of a cell's process: `truth` read; `judging`, with the inputs that are changed before each call; `memory`;
`warm_up`; `sampling`, of which what the calls themselves took is `calls`, with the first call; of rings `breakdown`.
Of whoever isolates it: `start` (of interpreters, imports and processes, and their end), `waiting` for the device,
`failed` (all that a process took which told nothing), `rest`. Seconds of wall time.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

WANTED = ("calls", "warm_up", "judging", "memory", "breakdown")  # all else is the harness's own
_DIGITS = 4


class Spent:
    """A clock that runs from now on, or from the start of this process (`of_process`)."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = defaultdict(float)
        self._phase, self._last = "rest", time.perf_counter()

    @classmethod
    def of_process(cls) -> Spent:
        """What the process has taken until now was its start."""
        clock = cls()
        clock._spent["start"] += _age_s()
        return clock

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Within, time belongs to that phase; afterwards to the one that it interrupted."""
        self._lap()
        before, self._phase = self._phase, phase
        try:
            yield
        finally:
            self._lap()
            self._phase = before

    def around(self, phase: str, do: Callable[[], object]) -> Callable[[], None]:
        """The same function, in that phase whenever it runs."""

        def run() -> None:
            with self.during(phase):
                do()

        return run

    def called(self, milliseconds: float) -> float:
        """So many of the phase `sampling` were spent in calls that were timed; in other phases calls are part of it."""
        if self._phase == "sampling":
            self._spent["sampling"] -= milliseconds / 1e3
            self._spent["calls"] += milliseconds / 1e3
        return milliseconds

    def of_worker(self, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A worker's result; its `spent_s` is all that it took to have it, and no part of this clock's time."""
        self._lap()
        result = run()
        now = time.perf_counter()
        told, wall = result.get("spent_s", {}), now - self._last
        self._last = now
        rest = "start" if told else "failed"
        return {**result, "spent_s": total([told, {rest: wall - sum(told.values())}])}

    def seconds(self) -> dict[str, float]:
        """Of each phase until now."""
        self._lap()
        return total([self._spent])

    def _lap(self) -> None:
        now = time.perf_counter()
        self._spent[self._phase] += now - self._last
        self._last = now


def total(parts: Iterable[dict[str, float]], share: float = 1.0) -> dict[str, float]:
    """Phase by phase, times `share`."""
    found: dict[str, float] = defaultdict(float)
    for part in parts:
        for phase, seconds in part.items():
            found[phase] += seconds * share
    return {phase: round(seconds, _DIGITS) for phase, seconds in found.items()}


def _age_s() -> float:
    """Seconds since this process was started; 0 where the system does not tell (it is Linux that does)."""
    try:
        with open("/proc/self/stat", encoding="utf-8") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
    except OSError:
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
