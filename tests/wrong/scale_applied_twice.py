"""The scale is applied twice, to q and again to the scores.

Code that scales q itself and then calls a function that scales too.
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
REASON = r"^(out|dq) is off"
RIGHT_IN = r"_s000001_"  # the only weight is 1 whatever the score


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    return standard.attention(q * softmax_scale, k, v, softmax_scale=softmax_scale, mask=mask)
