"""Sequence parallelism by all-to-all: each rank gets all tokens of its share of the heads, and computes them at once.

Source: DeepSpeed Ulysses (Jacobs et al. 2023, arXiv 2309.14509).
Sends, per rank: (R + 1) KV (N - 1) / N bytes forward (R = n_heads / n_kv_heads), and the same backward: nothing is
added up on the way, so gradients travel in their own dtype. Where N does not divide n_kv_heads, heads of k and v are
repeated until it does, and KV and R are of the repeated ones.
"""

from typing import Any

import torch
from torch import Tensor

from attn.contract import Mask
from attn.kernels import block
from attn.ring import heads, layouts
from attn.ring.communicator import Communicator

KIND = "ring"
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
LAYOUT = "contiguous"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator) -> Tensor:
    """Local shards in (batch, local_seq_len, heads, head_dim), local out.

    Raises:
        Unsupported: world_size does not divide n_heads.
    """
    return _Ulysses.apply(q, k, v, softmax_scale, mask, comm)  # type: ignore[no-any-return]


class _Ulysses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, mask: Mask, comm: Communicator
    ) -> Tensor:
        repeats = heads.kv_repeats(q.shape[2], k.shape[2], comm.world_size)
        comm.begin()
        given = heads.to_heads(comm, q, heads.repeated(k, repeats), heads.repeated(v, repeats))
        held = [x[:, : comm.seq_len] for x in given]  # padding lies behind all tokens
        ctx.how = {"softmax_scale": softmax_scale, "causal": mask.kind == "causal"}
        out, lse = block.forward(*held, **ctx.how)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*(comm.keep(x) for x in held), out, lse)
            ctx.comm, ctx.repeats = comm, repeats
        (out,) = heads.to_tokens(comm, layouts.padded(out, comm.world_size * q.shape[1]))
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        ctx.comm.begin()
        (dout_heads,) = heads.to_heads(ctx.comm, dout)
        found = block.backward(dout_heads[:, : ctx.comm.seq_len], *ctx.saved_tensors, **ctx.how)
        length = ctx.comm.world_size * dout.shape[1]
        dq, dk, dv = heads.to_tokens(ctx.comm, *(layouts.padded(x.to(dout.dtype), length) for x in found))
        return dq, heads.summed(dk, ctx.repeats), heads.summed(dv, ctx.repeats), None, None, None
