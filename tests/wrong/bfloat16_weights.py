"""Softmax weights are rounded to bfloat16 before they meet v, the inputs are float32.

Kernels that feed tensor cores cast the weights to the dtype of the products, here of a v kept in bfloat16.
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
WRONG_IN = r"_float32_"
RIGHT_IN = r"_bfloat16_|_s000001_"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    scores = q @ k.mT * softmax_scale
    allowed = mask.allowed(q.shape[2], k.shape[2])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    weights = torch.softmax(scores, dim=-1)
    if allowed is not None:
        weights = weights.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    rounded = weights + (weights.detach().bfloat16().to(weights.dtype) - weights).detach()
    return (rounded @ v).transpose(1, 2)
