"""One measurement at a time on a device, whichever clone it is started from."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

# The same for everyone on the machine; containers share a volume instead.
LOCK = os.environ.get("ATTN_BENCH_LOCKS", "/tmp") + "/attn-bench-{device}.lock"  # noqa: S108


@contextmanager
def device_lock(device: str) -> Iterator[None]:
    """Hold the device; a second one waits, and says so."""
    lock = FileLock(LOCK.format(device=device), mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another measurement holds {lock.lock_file}; waiting for it to end", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
