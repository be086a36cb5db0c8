"""The backward reads the gradient that it is handed as if it were dense, whatever its strides are.

`out.sum().backward()` hands over one number with strides of 0, and a transposed result a transposed gradient.
"""

from typing import Any

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
REASON = r"^d[qkv] (is off|has \d+ values that are not finite)"
WRONG_IN = r"_forward_backward-(strided|sliced|last-stride-2|dout-expanded)"
RIGHT_IN = r"_forward(?!_backward)"


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, out: Tensor) -> Tensor:
        return out.clone()

    @staticmethod
    def backward(_ctx: Any, dout: Tensor) -> Tensor:
        _, tokens, heads, width = dout.shape
        return dout.as_strided(dout.shape, (tokens * heads * width, heads * width, width, 1))


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    return _Dense.apply(standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask))
