"""Keys come in blocks of 64, and the last block is dropped where it is not a whole one.

`kv_seq_len // 64` blocks instead of that rounded up; lengths of a benchmark are multiples of 64 and hide it.
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
RIGHT_IN = r"_s0000(01|02|63|64)_|_s000128_"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    if mask.kind == "causal":
        allowed = allowed.tril(k.shape[2] - q.shape[2])
    whole = k.shape[2] // 64 * 64 or k.shape[2]  # what is shorter than a block is one block
    k, v, allowed = k[:, :, :whole], v[:, :, :whole], allowed[:, :whole]
    scores = (q @ k.mT * softmax_scale).masked_fill(~allowed, -torch.inf)
    weights = torch.softmax(scores, dim=-1).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return (weights @ v).transpose(1, 2)
