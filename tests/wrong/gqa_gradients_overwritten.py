"""Query heads that share a kv head overwrite each other's dk and dv instead of adding to them.

A plain store at the end of a backward kernel that runs once a query head, where an atomic add is due.
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
REASON = r"^dk is off.*; dv is off"
WRONG_IN = r"-kv0.*_forward_backward"
RIGHT_IN = r"^(?!.*-kv0)"


class _Repeat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: int) -> Tensor:
        ctx.group = group
        return x.repeat_interleave(group, dim=2)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None]:
        return dx.unflatten(2, (-1, ctx.group))[:, :, :, -1], None


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    k, v = _Repeat.apply(k, group), _Repeat.apply(v, group)
    return standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
