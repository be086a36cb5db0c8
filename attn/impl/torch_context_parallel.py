"""PyTorch's context parallelism: a ring in a process group, of two chunks a rank where causal, on its flash kernels.

Source: torch.distributed.tensor.experimental (BSD-3-Clause), the version that is installed (written for 2.13).
Its public `context_parallel` has no way to PyTorch's CPU kernel, so this calls the ring beneath it,
`_templated_ring_attention` and its backward, which are private, with the flash kernel of the device. It sends for
itself: what it sends is not counted, and on the CPU it needs `launch.transport: gloo`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from attn.contract import Mask, Unsupported
from attn.impl import _package
from attn.ring.communicator import Communicator

KIND = "ring"
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
LAYOUT = "zigzag"

_OF_CUDA = ("cum_seq_q", "cum_seq_k", "max_q", "max_k", "philox_seed", "philox_offset")


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator) -> Tensor:
    """Local shards in (batch, local_seq_len, heads, head_dim), local out.

    Raises:
        Unsupported: one rank, no process group, fewer heads of k and v, tokens that do not fill two chunks a rank,
            softmax_scale 0 under a causal mask, float32 on CUDA.
    """
    if comm.world_size == 1:
        raise Unsupported("1 rank: PyTorch's ring needs a process group, which one rank has not")
    if not dist.is_initialized():
        raise Unsupported(
            "no process group: PyTorch's ring sends by torch.distributed; params.yaml, launch.transport: gloo"
        )
    if q.shape[2] != k.shape[2]:
        raise Unsupported(f"{q.shape[2]} heads to {k.shape[2]} of k and v: PyTorch's ring takes as many")
    if comm.seq_len % (2 * comm.world_size):
        raise Unsupported(f"{comm.seq_len} tokens on {comm.world_size} ranks: it takes multiples of 2 x ranks")
    _package.refuse_scale(softmax_scale, mask, "PyTorch's kernel")
    if q.device.type == "cuda" and q.dtype == torch.float32:
        raise Unsupported("dtype float32: PyTorch's flash kernel on cuda has bfloat16, float16")
    q_bhsd, k_bhsd, v_bhsd = (x.transpose(1, 2) for x in (q, k, v))
    return _Ring.apply(q_bhsd, k_bhsd, v_bhsd, softmax_scale, mask.kind == "causal").transpose(1, 2)  # type: ignore[no-any-return]


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
        cpu = q.device.type == "cpu"
        aten = torch.ops.aten
        op = aten._scaled_dot_product_flash_attention_for_cpu if cpu else aten._scaled_dot_product_flash_attention
        with _balanced(causal) as ring:
            out, lse, *rest = ring._templated_ring_attention(_group(), 2, op, q, k, v, is_causal=causal, scale=scale)
        ctx.of_kernel = {} if cpu else dict(zip(_OF_CUDA, rest, strict=False))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale, ctx.causal = scale, causal
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        name = "_scaled_dot_product_flash_attention" + ("_for_cpu" if q.device.type == "cpu" else "") + "_backward"
        with _balanced(ctx.causal) as ring:
            dq, dk, dv, *_ = ring._templated_ring_attention_backward(
                _group(), 2, getattr(torch.ops.aten, name).default, dout, "grad_out", q, k, v, out, lse, ctx.causal,
                dropout_p=0.0, scale=ctx.scale, **ctx.of_kernel,
            )  # fmt: skip
        return dq, dk, dv, None, None


def _group() -> Any:
    return dist.group.WORLD


@contextmanager
def _balanced(causal: bool) -> Iterator[Any]:
    """The module of the ring, its option of two chunks a rank as the mask needs it."""
    from torch.distributed.tensor.experimental._context_parallel import _attention as ring

    before = ring._cp_options.enable_load_balance
    ring._cp_options.enable_load_balance = causal
    try:
        yield ring
    finally:
        ring._cp_options.enable_load_balance = before
