"""The mask is added to the scores instead of replacing them: a NaN in a hidden key reaches every row.

An additive mask of 0 and minus infinity; padding that was never written then poisons rows that do not see it.
"""

import torch
from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32", "bfloat16")
MASKS = ("full", "causal")
BACKWARD = False
CROSS_LENGTH = True
REASON = r"^out has \d+ values that are not finite, or should not be: nan at"
WRONG_IN = r"_causal_.*-nan-k"
RIGHT_IN = r"^(?!.*-nan-k)"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    scores = q @ k.mT * softmax_scale
    allowed = mask.allowed(q.shape[2], k.shape[2])
    if allowed is None:
        return (torch.softmax(scores, dim=-1) @ v).transpose(1, 2)
    scores = scores + torch.zeros_like(allowed, dtype=scores.dtype).masked_fill(~allowed, -torch.inf)
    weights = torch.softmax(scores, dim=-1).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return (weights @ v).transpose(1, 2)
