"""The scale that is asked for is ignored: it is always head_dim ** -0.5.

Kernels with the scale built in, behind an interface that takes one.
"""

from torch import Tensor

from attn.contract import Mask
from attn.impl import standard

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32", "bfloat16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True
REASON = r"^out is off"
WRONG_IN = r"-scale"
RIGHT_IN = r"^(?!.*-scale)"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    return standard.attention(q, k, v, softmax_scale=q.shape[-1] ** -0.5, mask=mask)
