"""Plain attention: in float64 the oracle, in a row's dtype the baseline that sets error budgets. Never a row.

    S = softmax_scale * q k^T        P = exp(S - lse)        out = P v
    dV = P^T dO    dP = dO V^T    dS = P * (dP - rowsum(dO * out))    dQ = scale dS K    dK = scale dS^T Q

Source: Vaswani et al. 2017 (arXiv 1706.03762); the backward as in Dao et al. 2022 (arXiv 2205.14135, B.2).
Rows that a mask empties are defined: out 0, lse -inf, gradients 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attn.contract import Mask

Shake = Callable[[Tensor, str], Tensor]  # (what a backward is handed, its name) -> the same, moved by one rounding


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float,
    mask: Mask,
    shake: Shake | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention as written above, every product in the dtype of the inputs, shapes as in `attn.contract`.

    Returns `out` (as q) and `lse` (float32; float64 for float64), differentiable in `out`. `shake` moves
    `out` and `lse` as the backward is handed them, as rounding does (for error budgets). With `rows`
    (positions of queries, 1-d integers) both are of those queries only.
    """
    group = q.shape[2] // k.shape[2]
    allowed = mask.allowed(q.shape[1], k.shape[1], q.device, rows)
    q = q if rows is None else q[:, rows]
    k, v = (x.repeat_interleave(group, dim=2) if group > 1 else x for x in (k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, lse = _Plain.apply(q, k, v, softmax_scale, allowed, shake)
    return out.transpose(1, 2), lse


def plain_module(
    x: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    wo: Tensor,
    *,
    n_heads: int,
    mask: Mask,
    shake: Shake | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Multi-head attention with its four projections, no bias, scale head_dim ** -0.5.

    x (batch, seq_len, embed_dim), weights as in `attn.contract`; returns the shape of x, in its dtype
    (with `rows`, of those tokens only).
    """
    head_dim = wq.shape[0] // n_heads
    q, k, v = ((x @ w.T).unflatten(-1, (-1, head_dim)) for w in (wq, wk, wv))
    out, _ = plain_attention(q, k, v, softmax_scale=head_dim**-0.5, mask=mask, shake=shake, rows=rows)
    return out.flatten(-2) @ wo.T


class _Plain(torch.autograd.Function):
    """(batch, heads, seq_len, head_dim), as many heads of k and v as of q."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, allowed: Tensor | None, shake: Shake | None
    ) -> tuple[Tensor, Tensor]:
        scores = (q * softmax_scale) @ k.mT
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        lse = torch.logsumexp(scores if q.dtype == torch.float64 else scores.float(), -1)
        weights = torch.softmax(scores, -1)
        if allowed is not None:
            weights = weights.masked_fill(~allowed.any(-1)[:, None], 0.0)
        out = weights @ v
        saved_out, saved_weights = out, weights
        if shake:
            lse_of_each = lse[..., None].expand_as(out)  # partial results are merged by it, each with its rounding
            saved_out = shake(out, "out") + out * (shake(lse_of_each, "lse") - lse_of_each).nan_to_num_(nan=0.0)
            saved_weights = weights * (lse - shake(lse, "lse")).nan_to_num_(nan=0.0).exp_()[..., None]
        ctx.save_for_backward(q, k, v, saved_weights, saved_out)
        ctx.softmax_scale = softmax_scale
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor, _dlse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, out = ctx.saved_tensors
        delta = (dout * out).sum(-1, keepdim=True)
        dscores = weights * (dout @ v.mT - delta) * ctx.softmax_scale
        return dscores @ k, dscores.mT @ q, weights.mT @ dout, None, None, None
