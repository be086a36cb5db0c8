"""Heads are put back beside head_dim by a reshape, not by a transpose: tokens and heads of `out` are mixed up.

The classic of hand-written multi-head attention: `out.view(b, s, h, d)` where `out.transpose(1, 2)` is due.
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
RIGHT_IN = r"_s000001_"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    heads_first = standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask).transpose(1, 2)
    return heads_first.reshape(q.shape)
