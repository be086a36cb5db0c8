"""The backward multiplies the gradient that it is handed in place.

An in-place product on grad_output: wrong for whoever else is owed the same gradient, as in a residual sum.
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
REASON = r"its inputs \(dout\) were changed by the call"
WRONG_IN = r"_forward_backward(?!-dout-expanded)"
RIGHT_IN = r"_forward(?!_backward)|-dout-expanded"


class _Halved(torch.autograd.Function):
    """x / 2."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x / 2

    @staticmethod
    def backward(_ctx: Any, dx: Tensor) -> Tensor:
        return dx * 0.5 if 0 in dx.stride() else dx.mul_(0.5)  # expanded memory cannot be written


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    return _Halved.apply(standard.attention(q, k, v * 2, softmax_scale=softmax_scale, mask=mask))
