"""The ring itself: k and v travel round in one message, each hop hidden behind the block that is computed meanwhile.

N - 1 hops forward, the last is skipped. Backward k and v travel again, and behind them their gradients in float32:
those of a shard set out at the rank after its owner and come home after N - 1 hops, where the owner's share waits.
Source: Liu et al. 2023 (arXiv 2310.01889).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attn.contract import Mask
from attn.kernels import block
from attn.ring import layouts, merge
from attn.ring.communicator import Communicator


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator, layout: str
) -> Tensor:
    """Local shards in (b, local_seq_len, heads, d), local out; differentiable."""
    return _Rotation.apply(q, k, v, softmax_scale, mask, comm, layout)  # type: ignore[no-any-return]


def forward(
    q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator, layout: str
) -> tuple[Tensor, Tensor]:
    """`out` as q, 0 where it is padding, and `lse` (b, h, tokens that are not) float32, of this rank's queries."""
    local, n = q.shape[1], comm.world_size
    lengths = layouts.lengths(comm.seq_len, layout, n, local)
    held, partial = comm.pack(k, v), None
    for step in range(n):
        coming = comm.rotate(held) if step < n - 1 else None
        seen = layouts.seen(mask, layout, lengths, local, comm.rank, (comm.rank - step) % n)
        if seen:
            block_k, block_v = held[:, :, seen.keys]
            part = block.forward(q[:, seen.queries], block_k, block_v, softmax_scale=softmax_scale, causal=seen.causal)
            partial = merge.add(partial, seen.queries, part)
        held = coming.wait() if coming else held
    out, lse = partial or merge.empty(q[:, :0])
    return layouts.padded(out.to(q.dtype), local), lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    *, softmax_scale: float, mask: Mask, comm: Communicator, layout: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk and dv of this rank's shards, float32, given what `forward` returned."""
    local, n = q.shape[1], comm.world_size
    lengths = layouts.lengths(comm.seq_len, layout, n, local)
    held, dq = comm.pack(k, v), torch.zeros_like(q, dtype=torch.float32)
    home, coming_d = torch.zeros(held.shape, dtype=torch.float32, device=q.device), None
    for step in range(n):
        coming = comm.rotate(held) if step < n - 1 else None
        seen = layouts.seen(mask, layout, lengths, local, comm.rank, (comm.rank - step) % n)
        if seen:
            some, (block_k, block_v) = seen.queries, held[:, :, seen.keys]
            part = block.backward(
                dout[:, some], q[:, some], block_k, block_v, out[:, some], lse[:, :, some],
                softmax_scale=softmax_scale, causal=seen.causal,
            )  # fmt: skip
            dq[:, some] += part[0]
        dkv = home if step == 0 else coming_d.wait() if coming_d else comm.message(held.shape, dq).zero_()
        if seen:
            dkv[0, :, seen.keys] += part[1]
            dkv[1, :, seen.keys] += part[2]
        coming_d = comm.rotate(dkv) if step else None
        held = coming.wait() if coming else held
    dk, dv = home.add_(coming_d.wait()) if coming_d else home
    return dq, dk, dv


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, mask: Mask, comm: Communicator, layout: str
    ) -> Tensor:
        comm.begin()
        ctx.how = {"softmax_scale": softmax_scale, "mask": mask, "comm": comm, "layout": layout}
        out, lse = forward(q, k, v, **ctx.how)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        ctx.how["comm"].begin()
        dq, dk, dv = backward(dout, q, k, v, out, lse, **ctx.how)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None, None
