"""Parts over 64 keys each are added up with the factor exp(highest score), without taking out the highest of all.

Split-key decoding and first drafts of ring attention: each part has a safe softmax, their merge has none.
"""

import torch
from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32", "bfloat16")
MASKS = ("full", "causal")
BACKWARD = False
CROSS_LENGTH = True
REASON = r"^out has \d+ values that are not finite"
WRONG_IN = r"-huge-row|-values-1e4"
RIGHT_IN = r"^(?!.*-(huge-row|values-1e4))"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, dim=2).float() for x in (k, v))
    scores = torch.einsum("bshd,bthd->bhst", q.float(), k) * softmax_scale
    allowed = mask.allowed(q.shape[1], k.shape[1])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    outs, sums = 0.0, 0.0
    for part, part_v in zip(scores.split(64, dim=-1), v.split(64, dim=1), strict=True):
        highest = part.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
        weights = torch.exp(part - highest)
        outs = outs + torch.exp(highest) * torch.einsum("bhst,bthd->bhsd", weights, part_v)
        sums = sums + torch.exp(highest) * weights.sum(-1, keepdim=True)
    return (outs / sums.masked_fill(sums == 0, 1.0)).transpose(1, 2).to(q.dtype)
