"""Online softmax over one key after another: the longest chain of sums there is.

Otherwise as online_over_blocks_of_37.
"""

from pathlib import Path

from torch import Tensor

from attn import registry
from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True

_online = registry.load(registry.read(Path(__file__).with_name("online_over_blocks_of_37.py")))


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    out: Tensor = _online.attention(q, k, v, softmax_scale=softmax_scale, mask=mask, block=1)
    return out
