"""The kv head of a query head is found by a shift, as if every group were a power of two.

`head >> log2(group)`; right for groups of 2, 4 and 8, wrong for the 3, 5 and 7 of some models.
"""

import torch
from torch import Tensor

from attn.contract import Mask
from attn.impl import standard

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32", "bfloat16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True
REASON = r"^out is off"
WRONG_IN = r"_h\d+-kv"
RIGHT_IN = r"^(?!.*-kv)|_h04-kv0[12]"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    shift = (q.shape[2] // k.shape[2]).bit_length() - 1
    heads = (torch.arange(q.shape[2]) >> shift).clamp_max(k.shape[2] - 1)
    return standard.attention(q, k[:, :, heads], v[:, :, heads], softmax_scale=softmax_scale, mask=mask)
