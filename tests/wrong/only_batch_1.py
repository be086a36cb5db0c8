"""k and v of the first sequence serve the whole batch.

`x[0]` of code that was written at a desk with batch 1, broadcast over the rest.
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
WRONG_IN = r"^b0[2-9]"
RIGHT_IN = r"^b01"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    k, v = (x[:1].expand_as(x) for x in (k, v))
    return standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
