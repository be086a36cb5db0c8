"""Keys are added up in another order at each call: right every time, and never twice the same.

Atomic adds from blocks that finish in any order; a training run cannot be repeated, and nobody said so.
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
REASON = r"^two runs on the same inputs differ"
RIGHT_IN = r"_s000001_"

chance = torch.Generator()
chance.seed()  # not the seed of anybody else


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    if mask.kind == "causal":
        allowed = allowed.tril(k.shape[2] - q.shape[2])
    order = torch.randperm(k.shape[2], generator=chance)
    k, v, allowed = k[:, :, order], v[:, :, order], allowed[:, order]
    scores = (q @ k.mT * softmax_scale).masked_fill(~allowed, -torch.inf)
    weights = torch.softmax(scores, dim=-1).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return (weights @ v).transpose(1, 2)
