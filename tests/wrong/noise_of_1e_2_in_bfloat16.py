"""Each element of out is off by about 1e-2 of itself, in bfloat16.

Weights or values quantised to 8 bits inside a kernel that takes bfloat16, hidden under `allclose(atol=1e-2)`.
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
REASON = r"out is off"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    out = standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
    noise = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))  # the same at every call
    return out + (1e-2 * noise * out).detach().to(out.dtype)
