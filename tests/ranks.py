"""What tests of launches share: rows whose rank 1 fails, and a check of few cases."""

import time
from pathlib import Path
from typing import Any

from attn import registry
from attn.contract import Workload

RING = registry.IMPL_DIR / "ring_v2_collective.py"
CELL = Workload(1, 33, 2, 2, 16, "float32", "full", "forward")
FAULTY = '''"""Right, after a fault of rank 1."""
import os, pathlib, signal, time
from attn.contract import Mask
from attn.impl.ring_v2_collective import attention as right

KIND, DEVICES, DTYPES, MASKS, BACKWARD = "ring", ("cpu",), ("float32",), ("full",), False


def attention(q, k, v, *, softmax_scale, mask, comm):
    if comm.rank == 1:
        {fault}
    return right(q, k, v, softmax_scale=softmax_scale, mask=mask, comm=comm)
'''
FAULTS = {
    "raise": ("raise ValueError('rank 1 has enough')", "crashed", "ValueError: rank 1 has enough (raise.py:11)"),
    "exit": ("print('not me', flush=True); os._exit(3)", "crashed", "last output: not me"),
    "exit 0": ("os._exit(0)", "crashed", "ended with exit code 0|was killed or exited"),
    "kill": ("os.kill(os.getpid(), signal.SIGKILL)", "crashed", "was killed"),
    "hang": ("time.sleep(600)", "timeout", "is at hang.py:11 (attention); 1 wait for others"),
}


def faulty(folder: Path, name: str, fault: str) -> Path:
    """A row whose rank 1 does something else first."""
    path = folder / f"{name.replace(' ', '_')}.py"
    path.write_text(FAULTY.format(fault=fault), encoding="utf-8")
    return path


def job(path: Path, world_size: int) -> dict[str, Any]:
    """A check of few cases: what is tested is a launch, not attention."""
    asked = {"implementation": str(path), "device": "cpu", "threads": 1, "seed": 7, "only": "_s000003_"}
    return {**asked, "world_size": world_size, "workloads": [CELL.as_dict()]}


def one_of(words: str, text: str) -> bool:
    return any(part in text for part in words.split("|"))


def wait_until(happens: Any, seconds: float) -> Any:
    """What it gave, once that is true; the last answer after so many seconds."""
    end = time.monotonic() + seconds
    while not (found := happens()) and time.monotonic() < end:
        time.sleep(0.02)
    return found
