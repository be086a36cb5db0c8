"""Whether something in this process computes while nobody asked it to."""

from __future__ import annotations

import os
import threading
import time

SETTLE_S, WINDOW_S = 0.05, 0.02  # OpenMP's threads spin for a few milliseconds before they sleep


def busy_ms() -> float:
    """Processor milliseconds that other threads than the caller's used in 20 ms; 0 where that is next to nothing.

    A first look of 2 ms is enough where all is quiet. Also 0 where the kernel does not tell.
    """
    if _used_by_others(0.002) < 1:
        return 0.0
    time.sleep(SETTLE_S)
    used = _used_by_others(WINDOW_S)
    return used if used > WINDOW_S * 1e3 / 4 else 0.0


def _used_by_others(window_s: float) -> float:
    before = _nanoseconds()
    time.sleep(window_s)
    return sum(used - before.get(task, 0) for task, used in _nanoseconds().items()) / 1e6


def _nanoseconds() -> dict[str, int]:
    """Of every other thread of this process, what it has used of a processor so far."""
    found: dict[str, int] = {}
    try:
        for task in os.listdir("/proc/self/task"):
            if task != str(threading.get_native_id()):
                with open(f"/proc/self/task/{task}/schedstat", encoding="ascii") as file:
                    found[task] = int(file.read().split()[0])
    except OSError:  # a thread that has ended meanwhile, or a kernel that does not tell
        pass
    return found
