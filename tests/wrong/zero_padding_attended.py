"""Keys are padded with zeros to a multiple of 64 and the padding is not masked: its scores of 0 take weight.

Kernels that load whole tiles; the causal mask happens to hide the padding, so that only full attention is wrong.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32", "bfloat16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True
REASON = r"^(out|dv) is off"
WRONG_IN = r"_full_"
RIGHT_IN = r"_causal_|_s000(064|128)_"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    if mask.kind == "causal":
        allowed = allowed.tril(k.shape[2] - q.shape[2])
    padding = -k.shape[2] % 64
    k, v = (F.pad(x, (0, 0, 0, padding)) for x in (k, v))
    allowed = F.pad(allowed, (0, padding), value=mask.kind == "full")
    scores = (q @ k.mT * softmax_scale).masked_fill(~allowed, -torch.inf)
    weights = torch.softmax(scores, dim=-1).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return (weights @ v).transpose(1, 2)
