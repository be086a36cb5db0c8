"""A tenth of the weights is dropped, at every call.

`dropout_p` handed to a functional attention, which knows nothing of `eval()`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32",)
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True
REASON = r"(out|d[qkv]) is off|two runs on the same inputs differ"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    if mask.kind == "causal":
        allowed = allowed.tril(k.shape[2] - q.shape[2])
    scores = (q @ k.mT * softmax_scale).masked_fill(~allowed, -torch.inf)
    weights = torch.softmax(scores, dim=-1).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    weights = F.dropout(weights, 0.1)
    return (weights @ v).transpose(1, 2)
