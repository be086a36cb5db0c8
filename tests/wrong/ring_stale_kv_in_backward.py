"""The backward computes every shard's gradients with k and v of the first ring step, the rank's own.

What was saved for the backward is the buffer of step 0; the shards that came after it are gone.
"""

from typing import Any

import torch
from torch import Tensor

from attn.contract import Mask
from attn.kernels import block
from attn.ring import layouts, merge
from attn.ring.communicator import Communicator

KIND = "ring"
DEVICES = ("cpu",)
DTYPES = ("float32",)
MASKS = ("full", "causal")
BACKWARD = True
REASON = r"^rank \d: d[qk] (is off|has \d+ values that are not finite)"
WRONG_IN = r"_forward_backward"
RIGHT_IN = r"_forward(?!_backward)"


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, comm: Communicator) -> Tensor:
        comm.begin()
        ctx.shards, ctx.scale, ctx.comm = [], scale, comm
        kv, (out, lse) = comm.all_gather(torch.stack((k, v))[None], dim=0), merge.empty(q)
        for source, length in enumerate(layouts.lengths(comm.seq_len, "contiguous", comm.world_size)):
            if length and not (causal and source > comm.rank):
                ctx.shards.append((source, length, causal and source == comm.rank))
                held_k, held_v = kv[source, :, :, :length]
                part = block.forward(q, held_k, held_v, softmax_scale=scale, causal=ctx.shards[-1][2])
                merge.merge_(out, lse, *part)
        ctx.save_for_backward(q, kv[comm.rank], out, lse)
        return out.clone()

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        ctx.comm.begin()
        q, kv, out, lse = ctx.saved_tensors
        dq, dkv = torch.zeros_like(q), kv.new_zeros(ctx.comm.world_size, *kv.shape)
        for source, length, causal in ctx.shards:
            k, v = kv[:, :, :length]
            part = block.backward(dout, q, k, v, out, lse, softmax_scale=ctx.scale, causal=causal)
            dq += part[0]
            dkv[source, :, :, :length] = torch.stack(part[1:])
        return dq, *ctx.comm.reduce_scatter(dkv, dim=0)[0], None, None, None


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator) -> Tensor:
    return _Ring.apply(q, k, v, softmax_scale, mask.kind == "causal", comm)
