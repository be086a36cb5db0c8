"""Inputs are read as if they were dense, whatever their strides are.

A kernel that is handed `data_ptr()` and computes addresses from shapes, without `contiguous()` before it.
"""

from torch import Tensor

from attn.contract import Mask
from attn.impl import standard

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32", "bfloat16")
MASKS = ("full", "causal")
BACKWARD = False
CROSS_LENGTH = True
REASON = r"^out (has \d+ values that are not finite|is off)"
WRONG_IN = r"-(strided|sliced|last-stride-2)"
RIGHT_IN = r"^(?!.*-(strided|sliced|last-stride-2))"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    q, k, v = (_dense(x) for x in (q, k, v))
    return standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)


def _dense(x: Tensor) -> Tensor:
    _, tokens, heads, width = x.shape
    return x.as_strided(x.shape, (tokens * heads * width, heads * width, width, 1))
