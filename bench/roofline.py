"""Work, and the ceiling that this machine sets to it: measured matrix-product and copy rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attn.contract import DTYPES, Workload

if TYPE_CHECKING:
    import torch

    from bench.device import Cpu

SIZES = (1024, 2048, 4096)
COPY_BYTES = 256 << 20
_ROUNDS = 5
_SLOW_MS = 1500.0


def flops(workload: Workload, kind: str) -> int:
    """Floating-point operations of one pass.

    Two products of 2 * seq_len * kv_seq_len * head_dim a head forward (half of the pairs when causal),
    2.5 times that backward; a module adds its four projections, forward once and backward twice.
    Source: the count of Dao 2023 (arXiv 2307.08691, section 4.1).
    """
    w = workload
    pairs = w.batch * w.n_heads * w.seq_len * w.kv_seq_len
    attention = 4 * pairs * w.head_dim // (2 if w.mask == "causal" else 1)
    widths = 2 * w.embed_dim + 2 * w.n_kv_heads * w.head_dim
    projections = 2 * w.batch * w.seq_len * w.embed_dim * widths if kind == "module" else 0
    if w.backward:
        return int(3.5 * attention) + 3 * projections
    return attention + projections


def measure_ceiling(job: dict[str, Any]) -> dict[str, Any]:
    """Best torch.mm rate per dtype over n = 1024 to 4096, and the rate of a copy (bytes read plus written)."""
    import torch

    from bench.device import open_device

    torch.set_num_threads(job["threads"])
    device = open_device(job["device"])
    rates = {dtype: _product_rate(device, getattr(torch, dtype)) for dtype in DTYPES}
    return {"status": "ok", "matrix_product": rates, "copy_gb_per_s": _copy_rate(device)}


def _product_rate(device: Cpu, dtype: torch.dtype) -> dict[str, Any]:
    """Best of the sizes; a size whose product would take seconds is left out, and named."""
    import torch

    best, best_n, skipped, previous_ms = 0.0, 0, [], 0.0
    for n in SIZES:
        if previous_ms * 8 > _SLOW_MS:
            skipped.append(n)
            continue
        a, b = (torch.randn(n, n, device=device.name).to(dtype) for _ in range(2))
        out = torch.empty_like(a)

        def product(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out) -> None:
            torch.mm(a, b, out=out)

        device.elapsed_ms(product, 1)
        previous_ms = min(device.elapsed_ms(product, 1) for _ in range(_ROUNDS))
        tflops = 2 * n**3 / previous_ms / 1e9
        if tflops > best:
            best, best_n = tflops, n
    return {"tflops": round(best, 4), "n": best_n, "not_tried": skipped}


def _copy_rate(device: Cpu) -> float:
    import torch

    source = torch.ones(COPY_BYTES, dtype=torch.int8, device=device.name)
    target = torch.empty_like(source)
    milliseconds = min(device.elapsed_ms(lambda: target.copy_(source), 1) for _ in range(_ROUNDS))
    return round(2 * COPY_BYTES / milliseconds / 1e6, 2)
