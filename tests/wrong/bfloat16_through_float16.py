"""bfloat16 inputs are computed in float16: more digits, but numbers above 65504 and below 6e-8 are lost.

Ports to GPUs without bfloat16; activations of large models do reach such numbers.
"""

import torch
from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("bfloat16",)
MASKS = ("full", "causal")
BACKWARD = False
CROSS_LENGTH = True
REASON = r"^out (is off|has \d+ values that are not finite)"
WRONG_IN = r"-values-1e"
RIGHT_IN = r"^(?!.*-values-1e)"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    dtype, group = q.dtype, q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2).half() for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    if mask.kind == "causal":
        allowed = allowed.tril(k.shape[2] - q.shape[2])
    scores = (q.float() @ k.float().mT * softmax_scale).masked_fill(~allowed, -torch.inf)
    weights = torch.softmax(scores, dim=-1).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return (weights.half().float() @ v.float()).half().transpose(1, 2).to(dtype)
