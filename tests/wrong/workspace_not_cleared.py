"""dk is added up in a workspace that is cleared when it is made, and never again: each backward adds to the last.

Atomic adds into a buffer that a kernel keeps between calls; a test that calls once sees nothing.
"""

from typing import Any

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
REASON = r"in its second call: dk is off"
WRONG_IN = r"_forward_backward"
RIGHT_IN = r"_forward(?!_backward)|_s000001_"  # with one key its gradient is 0
workspaces: dict[object, tuple[Tensor, Tensor]] = {}


class _Keys(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, k: Tensor) -> Tensor:
        key = (k.data_ptr(), k.shape, k.dtype)  # k is held: its address is not given to others
        ctx.workspace, _ = workspaces.setdefault(key, (torch.zeros_like(k, dtype=torch.float32), k.detach()))
        return k.view_as(k)

    @staticmethod
    def backward(ctx: Any, dk: Tensor) -> Tensor:
        return ctx.workspace.add_(dk).to(dk.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    return standard.attention(q, _Keys.apply(k), v, softmax_scale=softmax_scale, mask=mask)
