"""Heads of a group are in the wrong order, but only where no gradient is asked for.

A path of its own for inference, as most libraries have; tests of gradients never run it.
"""

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
REASON = r"^out(_without_gradients)? is off"
WRONG_IN = r"-kv0[23]"
RIGHT_IN = r"^(?!.*-kv0)|-kv01_"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    if not (torch.is_grad_enabled() and q.requires_grad):
        group = q.shape[2] // k.shape[2]
        k, v = k.repeat(1, 1, group, 1), v.repeat(1, 1, group, 1)
    return standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
