"""Plain attention: in float64 the oracle, in a row's dtype the baseline that sets error budgets. Never a row.

    S = softmax_scale * q k^T        P = exp(S - lse)        out = P v
    dV = P^T dO    dP = dO V^T    dS = P * (dP - rowsum(dO * out))    dQ = scale dS K    dK = scale dS^T Q

Source: Vaswani et al. 2017 (arXiv 1706.03762); the backward as in Dao et al. 2022 (arXiv 2205.14135, B.2).
`naive` is the same as who does not know that writes it: sums over keys one after another, divided by the sum of
weights after the product with v, and autograd through all of it, the maximum too. `chained` has such sums in `out`
and the backward as above, which is handed that `out`.
Rows that a mask empties are defined: out 0, lse -inf, gradients 0.
With `factors`, both factors of every product are rounded by it, as tensor cores read float32 in tf32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from attn.contract import Mask, Precision

Way = Literal["plain", "naive", "chained"]
Factors = Callable[[Tensor], Tensor]  # a factor of a product -> the same, as the product reads it
Shake = Callable[[Tensor, str], Tensor]  # (what a backward is handed, its name) -> the same, moved by one rounding


def tf32_nearest(x: Tensor) -> Tensor:
    """float32 with the 10 bits of mantissa that tf32 has, rounded to the nearest."""
    return _tf32(x, half=1 << (_TF32_CUT - 1))


def tf32_truncated(x: Tensor) -> Tensor:
    """The same, the other bits ignored: what the tensor cores do with a float32 that nobody has rounded."""
    return _tf32(x, half=0)


_TF32_CUT = 13  # bits of a float32's mantissa beyond those of tf32. Source: PTX ISA, alternate floating-point formats
FACTORS: dict[Precision, tuple[Factors | None, ...]] = {"dtype": (None,), "tf32": (tf32_nearest, tf32_truncated)}


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float,
    mask: Mask,
    shake: Shake | None = None,
    rows: Tensor | None = None,
    way: Way = "plain",
    factors: Factors | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention as written above, every product in the dtype of the inputs, shapes as in `attn.contract`.

    Returns `out` (as q) and `lse` (float32; float64 for float64), differentiable in `out`. `shake` moves
    `out` and `lse` as the backward is handed them, as rounding does (for error budgets); where the way is `naive`
    there is nothing handed. With `rows` (positions of queries, 1-d integers) both are of those queries only.
    """
    group = q.shape[2] // k.shape[2]
    allowed = mask.allowed(q.shape[1], k.shape[1], q.device, rows)
    q = q if rows is None else q[:, rows]
    k, v = (x.repeat_interleave(group, dim=2) if group > 1 else x for x in (k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if way == "naive":
        out, lse = _naive(q, k, v, softmax_scale, allowed, factors)
    else:
        out, lse = _Plain.apply(q, k, v, softmax_scale, allowed, shake, way == "chained", factors)
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
    way: Way = "plain",
    factors: Factors | None = None,
) -> Tensor:
    """Multi-head attention with its four projections, no bias, scale head_dim ** -0.5.

    x (batch, seq_len, embed_dim), weights as in `attn.contract`; returns the shape of x, in its dtype
    (with `rows`, of those tokens only).
    """
    head_dim = wq.shape[0] // n_heads
    q, k, v = (_product(x, w.T, factors).unflatten(-1, (-1, head_dim)) for w in (wq, wk, wv))
    how: dict[str, Any] = {"shake": shake, "rows": rows, "way": way, "factors": factors}
    out, _ = plain_attention(q, k, v, softmax_scale=head_dim**-0.5, mask=mask, **how)
    return _product(out.flatten(-2), wo.T, factors)


def _tf32(x: Tensor, half: int) -> Tensor:
    bits = (x.contiguous().view(torch.int32) + half) & ~((1 << _TF32_CUT) - 1)
    return torch.where(x.isfinite(), bits.view(torch.float32), x)


def _product(a: Tensor, b: Tensor, factors: Factors | None) -> Tensor:
    """Of two matrices (the last dimensions), differentiable."""
    return a @ b if factors is None else _Rounded.apply(a, b, factors)


class _Rounded(torch.autograd.Function):
    """The product of rounded factors; those of its gradients are rounded too."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, factors: Factors) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.factors = factors
        return factors(a) @ factors(b)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        (a, b), low = ctx.saved_tensors, ctx.factors
        db = low(a).mT @ low(dout)
        return low(dout) @ low(b).mT, db.sum_to_size(b.shape), None


def _naive(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, allowed: Tensor | None, factors: Factors | None
) -> tuple[Tensor, Tensor]:
    """As `_Plain`. The maximum is differentiated too: its gradient is 0, but for rounding.

    Products have the values of `_key_by_key` and the gradients of torch's own.
    """
    scores = _product(q, k.mT, factors) * softmax_scale
    empty = None if allowed is None else ~allowed.any(-1)[:, None]
    if allowed is not None and empty is not None:
        scores = scores.masked_fill(~allowed, -torch.inf).masked_fill(empty, 0.0)
    largest = scores.amax(-1, keepdim=True)
    weights = (scores - largest).exp()
    product, total = _product(weights, v, factors), weights.sum(-1, keepdim=True)
    by_key = _key_by_key(weights.detach(), v.detach(), factors)
    rounded = by_key.to(q.dtype)  # the sums in float32, as torch's own are, the results not
    out = (product + (rounded[..., :-1] - product).detach()) / (total + (rounded[..., -1:] - total).detach())
    lse = (largest.detach().float() + by_key[..., -1:].log())[..., 0]
    if empty is None:
        return out, lse
    return out.masked_fill(empty, 0.0), lse.masked_fill(empty[:, 0], -torch.inf)


def _key_by_key(weights: Tensor, v: Tensor, factors: Factors | None) -> Tensor:
    """The product, and in a last column the sums of weights: one key after another in float32, the longest chain."""
    weights, v = (weights, v) if factors is None else (factors(weights), factors(v))
    with_ones = torch.cat((v, torch.ones_like(v[..., :1])), -1).float()
    total = with_ones.new_zeros((*weights.shape[:-1], with_ones.shape[-1]))
    for weight, value in zip(weights.float().unbind(-1), with_ones.unbind(-2), strict=True):
        total.addcmul_(weight[..., None], value[..., None, :])
    return total


class _Plain(torch.autograd.Function):
    """(batch, heads, seq_len, head_dim), as many heads of k and v as of q."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        softmax_scale: float,
        allowed: Tensor | None,
        shake: Shake | None,
        chained: bool,
        factors: Factors | None,
    ) -> tuple[Tensor, Tensor]:
        scores = _product(q * softmax_scale, k.mT, factors)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        lse = torch.logsumexp(scores if q.dtype == torch.float64 else scores.float(), -1)
        weights = torch.softmax(scores, -1)
        if allowed is not None:
            weights = weights.masked_fill(~allowed.any(-1)[:, None], 0.0)
        out = _product(weights, v, factors)
        if chained:
            by_key = _key_by_key(weights, v, factors).to(q.dtype)
            out = torch.where(by_key[..., -1:] > 0, by_key[..., :-1] / by_key[..., -1:], out)
        saved_out, saved_weights = out, weights
        if shake:
            lse_of_each = lse[..., None].expand_as(out)  # partial results are merged by it, each with its rounding
            saved_out = shake(out, "out") + out * (shake(lse_of_each, "lse") - lse_of_each).nan_to_num_(nan=0.0)
            saved_out = saved_out * shake(torch.ones_like(out[..., :1]), "lse")  # all of a row is divided by one sum
            saved_weights = weights * (lse - shake(lse, "lse")).nan_to_num_(nan=0.0).exp_()[..., None]
        ctx.save_for_backward(q, k, v, saved_weights, saved_out)
        ctx.softmax_scale, ctx.factors = softmax_scale, factors
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor, _dlse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, out = ctx.saved_tensors
        delta = (dout * out).sum(-1, keepdim=True)
        dscores = weights * (_product(dout, v.mT, ctx.factors) - delta) * ctx.softmax_scale
        dq, dk, dv = ((dscores, k), (dscores.mT, q), (weights.mT, dout))
        return *(_product(a, b, ctx.factors) for a, b in (dq, dk, dv)), None, None, None, None, None
