"""lse is a logarithm of base 2.

Kernels compute exp2 because the hardware does, and hand out what they kept: FlashInfer's lse is base 2.
"""

import math

import torch
from torch import Tensor

from attn.contract import Mask
from attn.impl import standard

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32", "bfloat16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True
REASON = r"^lse is off"

attention = standard.attention


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> tuple[Tensor, Tensor]:
    out = standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    scores = torch.einsum("bshd,bthd->bhst", q.float(), k.float()) * softmax_scale
    allowed = mask.allowed(q.shape[1], k.shape[1])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return out, scores.logsumexp(-1) / math.log(2)
