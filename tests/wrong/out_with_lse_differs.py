"""`attention` is right, but the out that `attention_with_lse` gives is not divided by the row's sum.

Two paths through one kernel, of which only the one without lse is tested; mergers expect a normalised out.
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
REASON = r"^out_with_lse is off"
RIGHT_IN = r"_s000001_"

attention = standard.attention


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> tuple[Tensor, Tensor]:
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, dim=2).float() for x in (k, v))
    scores = torch.einsum("bshd,bthd->bhst", q.float(), k) * softmax_scale
    allowed = mask.allowed(q.shape[1], k.shape[1])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    highest = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
    weights = torch.exp(scores - highest)
    return torch.einsum("bhst,bthd->bshd", weights, v).to(q.dtype), weights.sum(-1).log() + highest[..., 0]
