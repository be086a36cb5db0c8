"""Online softmax over blocks of 37 keys, which divide no length of a case; gradients block by block in float32.

In 16 bits its weights are rounded before they meet v, as on tensor cores.
Source: Milakov and Gimelshein 2018 (arXiv 1805.02867); the backward as in Dao et al. 2022 (arXiv 2205.14135, B.2).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True


class Online(torch.autograd.Function):
    """(batch, heads, seq_len, head_dim); dq, dk, dv are summed in float32, block by block."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, allowed: Tensor, block: int) -> Tensor:
        out, total = torch.zeros_like(q, dtype=torch.float32), q.new_zeros((*q.shape[:-1], 1), dtype=torch.float32)
        largest = torch.full_like(total, -torch.inf)
        for keys, scores in _scores(q, k, softmax_scale, allowed, block):
            new = torch.maximum(largest, scores.amax(-1, keepdim=True))
            safe = new.nan_to_num(neginf=0.0)
            weights, kept = (scores - safe).exp(), (largest - safe).exp()
            total, largest = total * kept + weights.sum(-1, keepdim=True), new
            out = out * kept + (weights.to(v.dtype) @ v[:, :, keys]).float()
        out = (out / torch.where(total == 0, 1.0, total)).to(q.dtype)
        ctx.save_for_backward(
            q, k, v, allowed, out, largest.nan_to_num(neginf=0.0) + total.log().nan_to_num(neginf=0.0)
        )
        ctx.softmax_scale, ctx.block = softmax_scale, block
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, allowed, out, lse = ctx.saved_tensors
        dq, dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v))
        delta = (dout.float() * out.float()).sum(-1, keepdim=True)
        for keys, scores in _scores(q, k, ctx.softmax_scale, allowed, ctx.block):
            weights = (scores - lse).exp()
            dv[:, :, keys] = weights.mT @ dout.float()
            dscores = weights * (dout.float() @ v[:, :, keys].float().mT - delta) * ctx.softmax_scale
            dq += dscores @ k[:, :, keys].float()
            dk[:, :, keys] = dscores.mT @ q.float()
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _scores(q: Tensor, k: Tensor, softmax_scale: float, allowed: Tensor, block: int) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, k.shape[2], block):
        keys = slice(start, start + block)
        scores = q.float() @ k[:, :, keys].float().mT * softmax_scale
        yield keys, scores.masked_fill(~allowed[:, keys], -torch.inf)


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, block: int = 37) -> Tensor:
    """Shapes as in `attn.contract`."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, 2) for x in (k, v))
    allowed = mask.allowed(q.shape[1], k.shape[1])
    if allowed is None:
        allowed = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    out: Tensor = Online.apply(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), softmax_scale, allowed, block)
    return out.transpose(1, 2)
