"""Which of the configurations that passed the build is the fastest on the GPU that is here, kernel by kernel.

Nothing else can be chosen afterwards: `attn.kernels.flash.configs.order`. What does not compile or start here is
written down with its reason, and is no choice.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from attn.kernels.flash import configs
from bench.files import write_json

_CALLS = 10
_KERNELS = ("forward", "dq", "dkdv")
_BATCH, _SEQ_LEN, _HEADS = 1, 4096, 16


def tune(job: dict[str, Any]) -> dict[str, Any]:
    """A worker's task: into `path`, by key and name, the least milliseconds of a call, or why there is none.

    job: path, and `kinds`, the (precision, head_dim) that are to be measured. Only on a GPU.
    """
    import torch

    found: dict[str, dict[str, float | str]] = {}
    capability = torch.cuda.get_device_capability(0)
    for precision, head_dim in job["kinds"]:
        for kernel in _KERNELS:
            key = configs.key(kernel, configs.architecture(capability), precision, head_dim)
            call = _call(kernel, precision, head_dim)
            found[key] = {name: _timed(key, name, call) for name in configs.passed().get(key, [])}
            write_json(Path(job["path"]), found)
    return {"status": "ok", "timed": found}


def _timed(key: str, name: str, call: Callable[[], object]) -> float | str:
    """Any exception stands for a configuration that cannot run: what compilers raise is of many kinds."""
    from bench.device import open_device

    configs.FORCED[key] = name
    try:
        device = open_device("cuda")
        call()
        return min(device.elapsed_ms(call, 1, cold=False) for _ in range(_CALLS))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[-1][:200]}"
    finally:
        del configs.FORCED[key]


def _call(kernel: str, precision: str, head_dim: int) -> Callable[[], object]:
    """The kernel with what belongs to it, causal; of a backward, all of it, in which only one kernel changes."""
    import torch

    from attn.kernels.flash import host

    dtype = getattr(torch, "float32" if precision == "tf32" else precision)
    q, k, v, dout = torch.randn(4, _BATCH, _SEQ_LEN, _HEADS, head_dim, device="cuda", dtype=dtype)
    how: dict[str, Any] = {"softmax_scale": head_dim**-0.5, "shift": 0}
    how["precision"] = "tf32" if precision == "tf32" else "dtype"
    if kernel == "forward":
        return lambda: host.forward(q, k, v, **how)
    out, lse = host.forward(q, k, v, **how)
    return lambda: host.backward(dout, q, k, v, out, lse, dtype=dtype, **how)
