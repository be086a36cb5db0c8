"""Naive softmax that autograd goes through whole, the maximum too; divided by its sum after the product with v.

In exact arithmetic the maximum has no gradient; in rounded one, what is left of it meets the largest score.
"""

import torch
from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    scores = q @ k.mT * softmax_scale
    allowed = mask.allowed(q.shape[2], k.shape[2])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
        sees = allowed.any(-1, keepdim=True)
        scores = scores.masked_fill(~sees, 0.0)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    out = weights @ v / weights.sum(-1, keepdim=True)
    return (out if allowed is None else out.masked_fill(~sees, 0.0)).transpose(1, 2)
