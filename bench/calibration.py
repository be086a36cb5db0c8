"""What the model of rings (bench/project.py) is told of a rank and of its link: calls to time, and what follows."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from attn.contract import Workload
from attn.kernels import block
from attn.ring import merge
from attn.ring.communicator import Communicator
from bench.device import Do
from bench.project import Link

SIDES = (128, 256, 512, 1024, 2048)
COPIED_BYTES = 4 << 20
MESSAGE_BYTES = (4 << 10, 1 << 20, 4 << 20)  # the first for the latency, the others for rate and burst
_CALLS = 5


def calls(w: Workload, device: str) -> dict[str, Do]:
    """By name: `full SIDE` and `causal SIDE`, blocks with the workload's heads of q, not shared; `copy`; `merge`."""
    dtype = getattr(torch, w.dtype)

    def one(side: int, causal: bool) -> Do:
        q, k, v = (torch.randn(1, side, w.n_heads, w.head_dim, device=device).to(dtype) for _ in "qkv")
        return lambda: block.forward(q, k, v, softmax_scale=w.softmax_scale, causal=causal)

    copied = torch.randn(COPIED_BYTES // 4, device=device)
    out, block_out = torch.randn(2, 1, SIDES[-1], w.n_heads, w.head_dim, device=device)
    lse, block_lse = torch.randn(2, 1, w.n_heads, SIDES[-1], device=device)
    blocks = {f"{mask} {side}": one(side, mask == "causal") for mask in ("full", "causal") for side in SIDES}
    return blocks | {"copy": copied.clone, "merge": lambda: merge.merge_(out, lse, block_out, block_lse)}


def rates(w: Workload, seconds: dict[str, float]) -> dict[str, Any]:
    """Of `calls`, the fields of `Cluster`: block_tflops, causal_tflops, copy_s_per_byte, merge_s_per_byte."""

    def tflops(mask: str, pairs: float) -> dict[int, float]:
        return {n: 4 * pairs * n * n * w.n_heads * w.head_dim / seconds[f"{mask} {n}"] / 1e12 for n in SIDES}

    return {
        "block_tflops": tflops("full", 1),
        "causal_tflops": tflops("causal", 1 / 2),
        "copy_s_per_byte": seconds["copy"] / COPIED_BYTES,
        "merge_s_per_byte": seconds["merge"] / (4 * SIDES[-1] * w.n_heads * w.head_dim),
    }


def here(w: Workload, device: Any) -> dict[str, Any]:
    """`rates` of this process: the median of a few calls each, after one that warms up."""
    seconds = {}
    with torch.no_grad():
        for name, call in calls(w, device.name).items():
            device.elapsed_ms(call, 1)
            seconds[name] = statistics.median(device.elapsed_ms(call, 1) for _ in range(_CALLS)) / 1e3
    return rates(w, seconds)


@dataclass
class Message:
    """To the next rank and from the one before it, at the same time. processor_s: of the last one."""

    comm: Communicator
    size_bytes: int
    processor_s: float = 0.0

    def __post_init__(self) -> None:
        self._sent = torch.ones(self.size_bytes // 4)

    def __call__(self) -> None:
        """There and here."""
        start = time.process_time()
        self.comm.rotate(self._sent).wait()
        self.processor_s = time.process_time() - start


def link(seconds: dict[int, float], processor_s: dict[int, float]) -> Link:
    """From the seconds of messages of `MESSAGE_BYTES`: two large ones give the rate, and what it lets through at once.

    Raises:
        ValueError: the largest message took no longer than the one before it.
    """
    small, large, largest = MESSAGE_BYTES
    if seconds[largest] <= seconds[large]:
        raise ValueError(f"{largest} bytes took {seconds[largest]:g} s, {large} bytes {seconds[large]:g} s: no rate")
    rate = (largest - large) / (seconds[largest] - seconds[large])
    latency = seconds[small]
    burst = max(0.0, largest - (seconds[largest] - latency) * rate)
    return Link(rate, latency, burst, processor_s[largest] / largest)
