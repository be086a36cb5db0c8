"""Nothing outlives the pipeline: children die with their parent, a stage dies with the dvc that runs it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_REAP_S = 1.0  # what is killed ends in milliseconds, unless the kernel holds it
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to kill this process when the one that started it is gone (Linux; elsewhere nothing).

    parent: who that is, where it is known: it may be gone before we ask, and then this ends at once.
    """
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:
            os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of whatever our descendants leave behind, so that it can be found (Linux)."""
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(pid: int) -> set[int]:
    """Every process that descends from one, as far as /proc tells."""
    children: dict[int, set[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, set()).add(int(path.parent.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        todo += (new := children.get(todo.pop(), set()) - found)
        found |= new
    return found


def kill(pids: set[int]) -> None:
    """End processes, and wait for those that are our children: not every init takes the exit status of strangers."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    end, left = time.monotonic() + _REAP_S, pids
    while (left := {pid for pid in left if not _reaped(pid)}) and time.monotonic() < end:
        time.sleep(0.005)


def _reaped(pid: int) -> bool:
    """Gone, or not ours to wait for."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def die_with_dvc(poll_s: float = 0.5) -> None:
    """Inside a DVC stage, end this process, and with it its children, when dvc is gone, be it by kill -9.

    DVC starts stages through a shell that may stay between; a change of any of the two nearest ancestors
    counts. Outside of DVC (no DVC_STAGE in the environment) nothing happens: a shell may come and go.
    """
    if "DVC_STAGE" not in os.environ:
        return
    family = _ancestors()
    if dvc() is None:  # gone before we were there
        sys.exit("the dvc that started this stage is gone (neither its parent nor the one before is called dvc)")

    def watch() -> None:
        while _ancestors() == family:
            time.sleep(poll_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="die-with-dvc", daemon=True).start()


def dvc() -> int | None:
    """The process id of the dvc that runs this stage: its parent, or the one before where a shell stays between."""
    return next((pid for pid in _ancestors() if b"dvc" in _command(pid)), None)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _ancestors() -> tuple[int, int]:
    parent = os.getppid()
    try:
        with open(f"/proc/{parent}/stat", encoding="utf-8") as file:
            return parent, int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return parent, 0
