"""Outputs are kept by the addresses and shapes of the inputs: right at the first call, stale at the next.

A benchmark that calls with the same tensors then times a look-up in a dictionary.
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
REASON = r"^on other inputs in the same buffers: out is off"
kept: dict[object, tuple[Tensor, ...]] = {}


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    key = (*((x.data_ptr(), x.shape, x.stride()) for x in (q, k, v)), softmax_scale, mask)
    if key not in kept:  # the inputs are held, so that their addresses are not given to others
        kept[key] = (standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask), q, k, v)
    return kept[key][0]
