"""Ring attention by one collective: all-gather of k and v, q stays sharded; backward by reduce-scatter.

Source: the all-gather schedule of context parallelism, Llama 3 (arXiv 2407.21783, section 3.3.2); partial
results merged by log-sum-exp as in Liu et al. 2023 (arXiv 2310.01889).
Sends, per rank: (N - 1) KV bytes forward; backward as much again, and (N - 1) dKV bytes in float32. Holds N KV.
"""

from typing import Any

import torch
from torch import Tensor

from attn.contract import Mask
from attn.kernels import block
from attn.ring import layouts, merge
from attn.ring.communicator import Communicator

KIND = "ring"
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
LAYOUT = "contiguous"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator) -> Tensor:
    """Local shards in (batch, local_seq_len, heads, head_dim), local out."""
    return _Collective.apply(q, k, v, softmax_scale, mask, comm)  # type: ignore[no-any-return]


def _visible(mask: Mask, comm: Communicator) -> list[tuple[int, int, bool]]:
    """(source rank, its tokens, whether the diagonal runs through it) of every shard that this rank sees."""
    lengths = layouts.lengths(comm.seq_len, comm.world_size)
    last = comm.rank if mask.kind == "causal" else comm.world_size - 1
    return [
        (source, lengths[source], mask.kind == "causal" and source == comm.rank)
        for source in range(last + 1)
        if lengths[source]
    ]


class _Collective(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, mask: Mask, comm: Communicator
    ) -> Tensor:
        comm.begin()
        gathered = comm.all_gather(comm.pack(k, v), dim=2)
        out, lse = merge.empty(q)
        for source, length, causal in _visible(mask, comm):
            block_k, block_v = gathered[:, :, source * k.shape[1] :][:, :, :length]
            block_out, block_lse = block.forward(q, block_k, block_v, softmax_scale=softmax_scale, causal=causal)
            merge.merge_(out, lse, block_out, block_lse)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.softmax_scale, ctx.mask, ctx.comm = softmax_scale, mask, comm
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        ctx.comm.begin()
        gathered = ctx.comm.all_gather(ctx.comm.pack(k, v), dim=2)
        dq = torch.zeros_like(q, dtype=torch.float32)
        dkv = ctx.comm.message(gathered.shape, dq).zero_()
        for source, length, causal in _visible(ctx.mask, ctx.comm):
            tokens = slice(source * k.shape[1], source * k.shape[1] + length)
            block_k, block_v = gathered[:, :, tokens]
            block_dq, block_dk, block_dv = block.backward(
                dout, q, block_k, block_v, out, lse, softmax_scale=ctx.softmax_scale, causal=causal
            )
            dq += block_dq
            dkv[0, :, tokens], dkv[1, :, tokens] = block_dk, block_dv
        dk, dv = ctx.comm.reduce_scatter(dkv, dim=2).to(q.dtype)
        return dq.to(q.dtype), dk, dv, None, None, None
