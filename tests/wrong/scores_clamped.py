"""Scores are clamped to 50 before the exponential, so that it cannot overflow.

A quick remedy for NaN in training: `scores.clamp(-50, 50)`; sharp rows then weigh their largest keys alike.
"""

import torch
from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32", "bfloat16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True
REASON = r"^out is off"
WRONG_IN = r"-huge-row|-values-1e4"
RIGHT_IN = r"^(?!.*-(huge-row|values-1e4))"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    scores = (q @ k.mT * softmax_scale).clamp(-50.0, 50.0)
    allowed = mask.allowed(q.shape[2], k.shape[2])
    if allowed is None:
        return (torch.softmax(scores, dim=-1) @ v).transpose(1, 2)
    weights = torch.softmax(scores.masked_fill(~allowed, -torch.inf), dim=-1)
    weights = weights.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return (weights @ v).transpose(1, 2)
