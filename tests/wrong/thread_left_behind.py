"""The result is right, and a thread goes on working after the call has returned.

Pools that spin while they wait, and clean-up that is put off: the clock has stopped, and the next row pays.
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
REASON = r"still at work after it returned"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    threading.Thread(target=time.sleep, args=(0.05,)).start()
    return standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
