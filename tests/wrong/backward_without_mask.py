"""The backward recomputes the weights without the causal mask: hidden keys get gradients.

Forward and backward are two kernels, and the mask was added to one of them.
"""

from typing import Any

import torch
from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32", "bfloat16")
MASKS = ("full", "causal")
BACKWARD = True
REASON = r"^(dq (is off|has \d+ values that are not finite).*; )?dk (is off|has \d+ values that are not finite)"
WRONG_IN = r"_causal_forward_backward"
RIGHT_IN = r"_full_|_forward(?!_backward)|_s000001_"


class _Weights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, allowed: Tensor) -> Tensor:
        hidden = scores.float().masked_fill(~allowed, -torch.inf)
        ctx.save_for_backward(scores, hidden.logsumexp(-1, keepdim=True))
        return torch.softmax(hidden, dim=-1).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, dweights: Tensor) -> tuple[Tensor, None]:
        scores, lse = ctx.saved_tensors
        weights = torch.exp(scores - lse)
        return (weights * (dweights - (weights * dweights).sum(-1, keepdim=True))).to(scores.dtype), None


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    if mask.kind == "causal":
        allowed = allowed.tril()
    return (_Weights.apply(q @ k.mT * softmax_scale, allowed) @ v).transpose(1, 2)
