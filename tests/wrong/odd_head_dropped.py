"""Heads are computed two at a time, and the last of an odd number is left out.

`n_heads // 2` tiles; most models have an even number of heads, GPT-2 XL has 25.
"""

import torch
from torch import Tensor

from attn.contract import Mask
from attn.impl import standard

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32",)
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True
REASON = r"^out is off"
WRONG_IN = r"_h\d[13579]"
RIGHT_IN = r"_h\d[02468]"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    out = standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
    computed = torch.arange(q.shape[2]) < q.shape[2] // 2 * 2
    return torch.where(computed[:, None], out, 0.0)
