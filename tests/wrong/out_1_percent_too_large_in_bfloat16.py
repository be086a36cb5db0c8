"""Each element of out is 1 percent too large, in bfloat16.

A sum of weights whose last, half empty block was rounded away, or a scale that was calibrated: no element is off by
more than two units in the last place of its row.
"""

import torch
from torch import Tensor

from attn.contract import Mask
from attn.impl import standard

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("bfloat16",)
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True
REASON = r"out is off on the whole in head"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    out = standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
    return out + (out.float() * 1.01).to(torch.bfloat16).detach() - out.detach()
