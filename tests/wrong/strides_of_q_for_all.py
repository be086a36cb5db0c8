"""k and v of q's shape are read with q's strides.

A kernel's launcher that passes `q.stride()` three times; tests whose inputs are all made alike never see it.
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
REASON = r"^out (is off|has \d+ values that are not finite)"
RIGHT_IN = r"_d\d{3}_\w+$"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    if k.shape == q.shape:
        k, v = (_read_like(x, q) for x in (k, v))
    return standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)


def _read_like(x: Tensor, q: Tensor) -> Tensor:
    """As a kernel would, which asks nobody whether that memory is there; here it must be."""
    last = sum((size - 1) * stride for size, stride in zip(q.shape, q.stride(), strict=True))
    inside = last < x.untyped_storage().nbytes() // x.itemsize
    return x.as_strided(x.shape, q.stride(), 0) if inside else x
