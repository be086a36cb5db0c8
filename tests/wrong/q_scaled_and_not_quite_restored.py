"""q is scaled in place and divided by the scale afterwards, which rounding does not undo.

Seen as a remedy for the mistake before; exact where the scale is a power of two, as for head_dim 16, 64 and 256.
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
WRONG_IN = r"_d(032|040|080|096|128)_|-scale|-nan-q"
RIGHT_IN = r"_d(016|064|256)_(?!.*nan)"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    q.data.mul_(softmax_scale)
    out = standard.attention(q, k, v, softmax_scale=1.0, mask=mask)
    q.data.div_(softmax_scale)
    return out
