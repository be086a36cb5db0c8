"""q is scaled in place, in the caller's memory, past the count of changes that autograd keeps.

`q.mul_(scale)` saves an allocation, and the next layer that reads q, or the next call, gets other values.
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
REASON = r"its inputs \(q\) were changed by the call"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    q.data.mul_(softmax_scale)
    return standard.attention(q, k, v, softmax_scale=1.0, mask=mask)
