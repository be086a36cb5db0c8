"""The backward forgets to subtract rowsum(dout * out) from the gradient of the weights.

The softmax's own term, `delta` in FlashAttention, left out or read from a buffer that nobody filled.
"""

from typing import Any

import torch
from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32",)
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True
REASON = r"^(dq is off.*; )?dk is off[^;]*$"
WRONG_IN = r"_forward_backward"
RIGHT_IN = r"_forward(?!_backward)"


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        weights = torch.softmax(scores, dim=-1).masked_fill((scores == -torch.inf).all(-1, keepdim=True), 0.0)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, dweights: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        return weights * dweights


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    scores = q @ k.mT * softmax_scale
    allowed = mask.allowed(q.shape[2], k.shape[2])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return (_Softmax.apply(scores) @ v).transpose(1, 2)
