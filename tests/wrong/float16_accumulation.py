"""Partial sums of the products are kept in float16, whatever the inputs are.

Tensor cores with a float16 accumulator run twice as fast on consumer GPUs; some libraries choose them silently.
"""

import torch
from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32",)
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True
REASON = r"^out (is off|has \d+ values that are not finite)"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    scores = _product(q, k.mT) * softmax_scale
    allowed = mask.allowed(q.shape[2], k.shape[2])
    if allowed is None:
        return _product(torch.softmax(scores, dim=-1), v).transpose(1, 2)
    weights = torch.softmax(scores.masked_fill(~allowed, -torch.inf), dim=-1)
    weights = weights.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return _product(weights, v).transpose(1, 2)


def _product(a: Tensor, b: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float16)
    for columns, rows in zip(a.split(16, dim=-1), b.split(16, dim=-2), strict=True):
        total = (total.float() + columns @ rows).half()
    return total.float()
