"""Each element of out is off by up to 1.7e-2 of itself, 1e-2 in root mean square, in bfloat16.

Values kept in 8 bits: noise without tails, so that no element is far off by itself.
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
    noise = torch.rand(out.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1  # the same at every call
    off = (out.float() * (1 + 1e-2 * 3**0.5 * noise)).to(torch.bfloat16).detach()
    return out + off - out.detach()
