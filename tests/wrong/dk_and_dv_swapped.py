"""The backward gives dk where dv is due, and dv where dk is.

The order of what an autograd function returns; shapes agree, and a loss still falls for a while.
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
REASON = r"^(dk is off.*; )?dv is off"
WRONG_IN = r"_forward_backward"
RIGHT_IN = r"_forward(?!_backward)"


class _KeysAndValues(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k.view_as(k), v.view_as(v)

    @staticmethod
    def backward(_ctx: Any, dk: Tensor, dv: Tensor) -> tuple[Tensor, Tensor]:
        return dv, dk


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    k, v = _KeysAndValues.apply(k, v)
    return standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
