"""out is float32 whatever the inputs are.

Kernels that accumulate in float32 and return the accumulator; twice the bytes for whoever comes next.
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
REASON = r"^out is [\dx]+ float32, not [\dx]+ bfloat16$"
WRONG_IN = r"_bfloat16_"
RIGHT_IN = r"_float32_"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    return standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask).float()
