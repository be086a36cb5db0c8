"""Every call of a shape returns the same memory: what an earlier call returned is overwritten.

CUDA graphs replay into static outputs, and a wrapper that does not copy them out hands them to two callers.
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
REASON = r"changed|overwritten"
buffers: dict[object, Tensor] = {}


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    out = standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
    return buffers.setdefault((q.shape, q.dtype), out.clone()).copy_(out)
