"""Nothing outlives the pipeline: children die with their parent, a stage dies with the dvc that runs it."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it is gone (Linux; elsewhere nothing)."""
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_dvc(poll_s: float = 0.5) -> None:
    """Inside a DVC stage, end this process group when dvc is gone, be it by kill -9.

    DVC starts stages through a shell that may stay between; a change of any of the two nearest ancestors
    counts. Outside of DVC (no DVC_STAGE in the environment) nothing happens: a shell may come and go.
    """
    if "DVC_STAGE" not in os.environ:
        return
    family = _ancestors()

    def watch() -> None:
        while _ancestors() == family:
            time.sleep(poll_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="die-with-dvc", daemon=True).start()


def _ancestors() -> tuple[int, int]:
    parent = os.getppid()
    try:
        with open(f"/proc/{parent}/stat", encoding="utf-8") as file:
            return parent, int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return parent, 0
