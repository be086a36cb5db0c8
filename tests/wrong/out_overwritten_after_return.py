"""out is right when the call returns, and somebody overwrites it a moment later.

Memory that was given back to a pool while a result still lives there, as when a stream is not recorded.
"""

import threading
import time

from torch import Tensor

from attn.contract import Mask
from attn.impl import standard

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32", "bfloat16")
MASKS = ("full", "causal")
BACKWARD = False
CROSS_LENGTH = True
REASON = r"still at work after it returned|out is off|two runs on the same inputs differ|overwritten"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    out = standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)

    def somebody() -> None:
        time.sleep(3e-4)
        out.zero_()

    threading.Thread(target=somebody).start()
    return out
