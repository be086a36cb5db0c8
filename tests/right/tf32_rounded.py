"""Products in tf32, factors rounded to the nearest: what the default of many libraries does on a GPU.

It declares that, so it is judged by budgets of plain attention with such products.
"""

from typing import Any

import torch
from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32",)
PRECISION = "tf32"
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    return with_products(Rounded, q, k, v, softmax_scale, mask)


def with_products(
    product: type[torch.autograd.Function], q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, mask: Mask
) -> Tensor:
    """Weights are rounded before they are divided by their sum, as a kernel does that goes through k and v once."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    scores = product.apply(q, k.mT) * softmax_scale
    allowed = mask.allowed(q.shape[2], k.shape[2])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    largest = scores.detach().amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    weights = (scores - largest).exp()
    total = weights.sum(-1, keepdim=True)
    out = product.apply(weights, v) / torch.where(total == 0, 1.0, total)
    return out.transpose(1, 2)


class Rounded(torch.autograd.Function):
    """a @ b of rounded factors; its gradients are such products too."""

    @staticmethod
    def low(x: Tensor) -> Tensor:
        _, exponent = torch.frexp(x)
        unit = torch.ldexp(torch.ones_like(x), (exponent - 11).clamp_min(-120))
        return torch.where(x.isfinite() & (x != 0), torch.round(x / unit) * unit, x)

    @classmethod
    def forward(cls, ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.low = cls.low
        return cls.low(a) @ cls.low(b)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor]:
        (a, b), low = ctx.saved_tensors, ctx.low
        return low(dout) @ low(b).mT, low(a).mT @ low(dout)
