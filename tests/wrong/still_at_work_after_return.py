"""A thread fills out after the call has returned.

Work that is handed to a pool or a stream and not waited for: the clock stops before the work is done.
"""

import threading
import time

import torch
from torch import Tensor

from attn.contract import Mask
from attn.impl import standard

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32", "bfloat16")
MASKS = ("full", "causal")
BACKWARD = False
CROSS_LENGTH = True
REASON = r"still at work after it returned|out has \d+ values that are not finite, or should not be: nan"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    out = torch.empty_like(q)

    def work() -> None:
        time.sleep(10e-3)
        with torch.no_grad():
            out.copy_(standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask))

    threading.Thread(target=work).start()
    return out
