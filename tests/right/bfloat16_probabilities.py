"""Scores and softmax in float32, weights rounded to the dtype of v before they are divided by their sum.

As on tensor cores. The sum is of the weights before they are rounded; autograd goes through all of it.
"""

import torch
from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    scores = q.float() @ k.float().mT * softmax_scale
    allowed = mask.allowed(q.shape[2], k.shape[2])
    if allowed is not None:
        sees = allowed.any(-1, keepdim=True)
        scores = scores.masked_fill(~allowed, -torch.inf).masked_fill(~sees, 0.0)
    weights = (scores - scores.amax(-1, keepdim=True).detach()).exp()
    out = (weights.to(v.dtype) @ v).float() / weights.sum(-1, keepdim=True)
    return (out if allowed is None else out.masked_fill(~sees, 0.0)).to(q.dtype).transpose(1, 2)
