"""Heads of k and v are repeated as a whole, not each one for its own group: query head h reads kv head h % n.

`repeat` where `repeat_interleave` is due; with one kv head, or as many as query heads, both are the same.
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
WRONG_IN = r"-kv0[23]"
RIGHT_IN = r"^(?!.*-kv)|-kv01_"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat(1, 1, group, 1), v.repeat(1, 1, group, 1)
    return standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
