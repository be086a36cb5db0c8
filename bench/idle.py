"""Whether something in this process computes while nobody asked it to."""

from __future__ import annotations

import os
import threading
import time

LOOK_S, LOOKS, WINDOW_S = 0.002, 25, 0.02  # OpenMP's threads spin for a few milliseconds before they sleep


def busy_ms() -> float:
    """Milliseconds that other threads than the caller's ran, or waited to run, in 20 ms; 0 where that is next to none.

    Looks 2 ms apart come first: one in which no other thread wants a processor is enough. Also 0 where the kernel does
    not tell.
    """
    for _ in range(LOOKS):
        time.sleep(LOOK_S)
        if not any(_wants_to_run(task) for task in _others()):
            return 0.0
    before = _ran_ms()
    time.sleep(WINDOW_S)
    ran = sum(ms - before.get(task, 0.0) for task, ms in _ran_ms().items())
    return ran if ran > WINDOW_S * 1e3 / 4 else 0.0


def _others() -> list[str]:
    try:
        return [task for task in os.listdir("/proc/self/task") if task != str(threading.get_native_id())]
    except OSError:
        return []


def _wants_to_run(task: str) -> bool:
    return _told(task, "stat").rpartition(")")[2].split()[:1] == ["R"]


def _ran_ms() -> dict[str, float]:
    """Of every other thread, how long it has been on a processor or in line for one."""
    told = {task: _told(task, "schedstat").split() for task in _others()}
    return {task: (int(fields[0]) + int(fields[1])) / 1e6 for task, fields in told.items() if len(fields) > 1}


def _told(task: str, what: str) -> str:
    """What the kernel says of a thread; nothing of one that has ended meanwhile."""
    try:
        with open(f"/proc/self/task/{task}/{what}", encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""
