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


def _seen(mask: Mask, comm: Communicator, local: int) -> list[layouts.Seen]:
    """What this rank's queries see of all keys: every one; causal, those before its own, then its own."""
    mine = layouts.lengths(comm.seq_len, LAYOUT, comm.world_size, local)[comm.rank]
    queries, first = slice(0, mine), comm.rank * local
    if mask.kind == "full":
        blocks = [layouts.Seen(queries, slice(0, comm.seq_len), causal=False)]
    else:
        before, own = slice(0, first), slice(first, first + mine)
        blocks = [layouts.Seen(queries, before, causal=False), layouts.Seen(queries, own, causal=True)]
    return [one for one in blocks if mine and one.keys.start < one.keys.stop]


class _Collective(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, mask: Mask, comm: Communicator
    ) -> Tensor:
        comm.begin()
        gathered, partial = comm.all_gather(comm.pack(k, v), dim=2), None
        for seen in _seen(mask, comm, k.shape[1]):
            keys, values = gathered[:, :, seen.keys]
            part = block.forward(q[:, seen.queries], keys, values, softmax_scale=softmax_scale, causal=seen.causal)
            partial = merge.add(partial, seen.queries, part)
        out, lse = partial or merge.empty(q[:, :0])
        out = layouts.padded(out.to(q.dtype), q.shape[1])
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
        for seen in _seen(ctx.mask, ctx.comm, k.shape[1]):
            some, (keys, values) = seen.queries, gathered[:, :, seen.keys]
            part = block.backward(
                dout[:, some], q[:, some], keys, values, out[:, some], lse[:, :, some],
                softmax_scale=ctx.softmax_scale, causal=seen.causal,
            )  # fmt: skip
            dq[:, some] += part[0]
            dkv[0, :, seen.keys], dkv[1, :, seen.keys] = part[1:]
        dk, dv = ctx.comm.reduce_scatter(dkv, dim=2).to(k.dtype)
        return dq.to(q.dtype), dk, dv, None, None, None
