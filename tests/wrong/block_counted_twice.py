"""Keys come in blocks of 64, and a block ends one key late: each key at a border is counted twice.

`range(start, end + 1)`, or an inclusive end in the loop over blocks of a kernel.
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
REASON = r"^(out|dv) is off"
RIGHT_IN = r"_s0000(01|02|63|64)_"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    if mask.kind == "causal":
        allowed = allowed.tril(k.shape[2] - q.shape[2])
    length = k.shape[2]
    blocks = [range(start, min(start + 64 + 1, length)) for start in range(0, length, 64)]
    index = torch.tensor([key for block in blocks for key in block])
    k, v, allowed = k[:, :, index], v[:, :, index], allowed[:, index]
    scores = (q @ k.mT * softmax_scale).masked_fill(~allowed, -torch.inf)
    weights = torch.softmax(scores, dim=-1).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return (weights @ v).transpose(1, 2)
