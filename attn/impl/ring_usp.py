"""Two dimensions: Ulysses inside a group of ranks, a ring of k and v across the groups.

Source: Fang and Zhao 2024 (arXiv 2405.07719), USP. Groups are `ulysses_size` neighbours; where none is asked for, the
ranks of a node where there are several nodes, else the largest divisor of world_size not above its square root.
Sends, per rank, with U ranks in each of G groups: (R + 1) KV (U - 1) / U + (G - 1) KV bytes forward; backward the
all-to-all again, and (G - 1) KV and as many float32 gradients, which is (3G - 3) KV at 2 bytes an element.
"""

import math
from typing import Any

import torch
from torch import Tensor

from attn.contract import Mask, Unsupported
from attn.impl import _rotation
from attn.ring import heads
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
        Unsupported: the size of a group does not divide world_size or n_heads, or nodes have unequal numbers of ranks.
    """
    return _Usp.apply(q, k, v, softmax_scale, mask, comm)  # type: ignore[no-any-return]


def group_size(comm: Communicator) -> int:
    """Ranks that share heads out among them.

    Raises:
        Unsupported: it does not divide world_size, or nodes have unequal numbers of ranks.
    """
    n, nodes = comm.world_size, list(comm.node_of_rank)
    if comm.ulysses_size:
        if n % comm.ulysses_size:
            raise Unsupported(f"ulysses_size {comm.ulysses_size} does not divide {n} ranks")
        return comm.ulysses_size
    if len(set(nodes)) == 1:
        return max(size for size in range(1, math.isqrt(n) + 1) if n % size == 0)
    counts = sorted({nodes.count(node) for node in nodes})
    if len(counts) > 1:
        raise Unsupported(f"nodes of {' and '.join(map(str, counts))} ranks: groups must be of one size")
    return counts[0]


class _Usp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, mask: Mask, comm: Communicator
    ) -> Tensor:
        size = group_size(comm)
        repeats = heads.kv_repeats(q.shape[2], k.shape[2], size)
        comm.begin()
        inner, outer = comm.grid(size)
        given = heads.to_heads(inner, q, heads.repeated(k, repeats), heads.repeated(v, repeats))
        ctx.how = {"softmax_scale": softmax_scale, "mask": mask, "comm": outer, "layout": LAYOUT}
        out, lse = _rotation.forward(*given, **ctx.how)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*(inner.keep(x) for x in given), out, lse)
            ctx.comm, ctx.inner, ctx.repeats = comm, inner, repeats
        (out,) = heads.to_tokens(inner, out)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        ctx.comm.begin()
        (dout_heads,) = heads.to_heads(ctx.inner, dout)
        found = _rotation.backward(dout_heads, *ctx.saved_tensors, **ctx.how)
        dq, dk, dv = heads.to_tokens(ctx.inner, *(x.to(dout.dtype) for x in found))
        return dq, heads.summed(dk, ctx.repeats), heads.summed(dv, ctx.repeats), None, None, None
