"""Queries that see no key get the mean of all v: hidden scores are -1e9, not minus infinity.

`masked_fill(mask == 0, -1e9)` of The Annotated Transformer and of most code that came after it.
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
WRONG_IN = r"_s000127-kvs000065_.*_causal_"
RIGHT_IN = r"^(?!.*_s000127-kvs000065_)"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    scores = q @ k.mT * softmax_scale
    allowed = mask.allowed(q.shape[2], k.shape[2])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -1e9)
    return (torch.softmax(scores, dim=-1) @ v).transpose(1, 2)
