"""A sequence's k and v are looked for where they would be if there were as many kv heads as query heads.

The batch stride of k computed from n_heads: wrong only with grouped heads and more than one sequence.
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
WRONG_IN = r"^b0[2-9].*-kv0"
RIGHT_IN = r"^b01|^(?!.*-kv0)"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    (batch, t), group = k.shape[:2], q.shape[2] // k.shape[2]
    rows = torch.arange(batch)[:, None] * t * group + torch.arange(t)  # of k as one long sequence
    k, v = (x.flatten(0, 1)[rows.clamp_max(batch * t - 1)] for x in (k, v))  # beyond its end is the memory of others
    return standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
