"""Attends over heads instead of tokens: the products run over (batch, seq_len, n_heads, head_dim) as it stands.

The table that started this project had it: `q @ k.transpose(-2, -1)` without `transpose(1, 2)` before it.
"""

import torch
from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32", "bfloat16")
MASKS = ("full", "causal")
BACKWARD = True
REASON = r"^out is off"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores = q @ k.mT * softmax_scale
    allowed = mask.allowed(scores.shape[-2], scores.shape[-1])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return torch.softmax(scores, dim=-1) @ v
