"""float32 inputs are computed in bfloat16 and the result is cast back.

Autocast left on around an attention, or a kernel that has no float32 path and casts without a word.
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
WRONG_IN = r"_float32_"
RIGHT_IN = r"_bfloat16_"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    few_bits = (x.to(torch.bfloat16) for x in (q, k, v))
    return standard.attention(*few_bits, softmax_scale=softmax_scale, mask=mask).to(q.dtype)
