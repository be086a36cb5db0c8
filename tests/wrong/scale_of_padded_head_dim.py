"""head_dim is padded to a power of two, and the scale is corrected to that of the padded one.

Kernels that take head_dim of 16, 32, 64 and 128 only; their wrapper pads 40 and 80, and the scale follows.
"""

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
WRONG_IN = r"_d0(40|80|96)_"
RIGHT_IN = r"_d(016|032|064|128|256)"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    padded = 1 << (q.shape[-1] - 1).bit_length()
    return standard.attention(q, k, v, softmax_scale=softmax_scale * (q.shape[-1] / padded) ** 0.5, mask=mask)
