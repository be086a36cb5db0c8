"""dq lacks the factor softmax_scale, which dk has.

A backward whose scale is folded into one of two products; an optimiser that normalises hides it.
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
REASON = r"^dq is off[^;]*$"
WRONG_IN = r"_forward_backward"
RIGHT_IN = r"_forward(?!_backward)"


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, q: Tensor, scale: float) -> Tensor:
        return q * scale

    @staticmethod
    def backward(_ctx: Any, dq: Tensor) -> tuple[Tensor, None]:
        return dq, None


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    return standard.attention(_Scaled.apply(q, softmax_scale), k, v, softmax_scale=1.0, mask=mask)
