"""A NaN among the scores becomes 0 and is seen no more.

`nan_to_num` put there to silence rows without keys; it silences what is broken elsewhere, too.
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
REASON = r"^out has \d+ values that are not finite, or should not be"
WRONG_IN = r"-nan-[qk]"
RIGHT_IN = r"^(?!.*-nan-[qk])"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    scores = (q @ k.mT * softmax_scale).nan_to_num(nan=0.0)
    allowed = mask.allowed(q.shape[2], k.shape[2])
    if allowed is None:
        return (torch.softmax(scores, dim=-1) @ v).transpose(1, 2)
    weights = torch.softmax(scores.masked_fill(~allowed, -torch.inf), dim=-1)
    weights = weights.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return (weights @ v).transpose(1, 2)
