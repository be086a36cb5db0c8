"""lse is 0, not minus infinity, where a query sees no key: such a row then counts when parts are merged.

Kernels that start from `m = 0` or guard `log(0)`; ring attention then mixes in blocks that hold nothing.
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
REASON = r"^lse has \d+ values that are not finite, or should not be: 0 at"
WRONG_IN = r"_s000127-kvs000065_.*_causal_"
RIGHT_IN = r"^(?!.*_s000127-kvs000065_)"

attention = standard.attention


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> tuple[Tensor, Tensor]:
    out = standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    scores = torch.einsum("bshd,bthd->bhst", q.float(), k.float()) * softmax_scale
    allowed = mask.allowed(q.shape[1], k.shape[1])
    if allowed is None:
        return out, scores.logsumexp(-1)
    lse = scores.masked_fill(~allowed, -torch.inf).logsumexp(-1)
    return out, lse.masked_fill(lse == -torch.inf, 0.0)
