"""Textbook attention: all scores in memory, softmax, product.

Source: Vaswani et al. 2017 (arXiv 1706.03762), equation 1.
"""

import torch
from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    """Shapes as in `attn.contract`; returns out, as q."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.mT * softmax_scale
    allowed = mask.allowed(q.shape[2], k.shape[2], q.device)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    weights = torch.softmax(scores, dim=-1)
    if allowed is not None and q.shape[2] > k.shape[2]:  # the first queries see no key
        weights = weights.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return (weights @ v).transpose(1, 2)
