"""Each element of out is off by about 1e-4 of itself.

Fast exponentials by short polynomials and tables, accepted by tests with `rtol=1e-3`.
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


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    out = standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
    noise = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))  # the same at every call
    return out + (1e-4 * noise * out).detach()
