"""The causal mask is aligned at the top left where q and k differ in length.

PyTorch's own `is_causal=True`, and FlashAttention before version 2.1.
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
WRONG_IN = r"-kvs.*_causal_"
RIGHT_IN = r"_full_|_s\d+_d"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    if mask.kind == "causal":
        allowed = allowed.tril()
    scores = (q @ k.mT * softmax_scale).masked_fill(~allowed, -torch.inf)
    weights = torch.softmax(scores, dim=-1).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return (weights @ v).transpose(1, 2)
