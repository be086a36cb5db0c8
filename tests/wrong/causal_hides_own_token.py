"""The causal mask hides the diagonal: a query does not see its own key, and the first sees nothing.

`tril(-1)`, or `j < i`, of code that was written for predicting the next token from those before.
"""

import torch
from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32",)
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True
REASON = r"^(out|dv) is off"
WRONG_IN = r"_causal_"
RIGHT_IN = r"_full_"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    if mask.kind == "causal":
        allowed = allowed.tril(k.shape[2] - q.shape[2] - 1)
    scores = (q @ k.mT * softmax_scale).masked_fill(~allowed, -torch.inf)
    weights = torch.softmax(scores, dim=-1).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return (weights @ v).transpose(1, 2)
