"""A sequence's k and v are looked for where they would be if they were as long as q.

The batch stride of k computed from seq_len: wrong only with several sequences, and k longer than q.
"""

import torch
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
WRONG_IN = r"^b0[2-9].*-kvs"
RIGHT_IN = r"^b01|^(?!.*-kvs)"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    batch, t = k.shape[:2]
    rows = torch.arange(batch)[:, None] * q.shape[1] + torch.arange(t)  # of k as one long sequence
    k, v = (x.flatten(0, 1)[rows.clamp_max(batch * t - 1)] for x in (k, v))  # beyond its end is the memory of others
    return standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
