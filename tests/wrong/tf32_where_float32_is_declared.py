"""Products are in TF32: both factors lose all but 10 bits of their mantissa, the inputs are float32.

The default of PyTorch's matrix products on GPUs in versions 1.7 to 1.11, and of convolutions until today.
"""

import torch
from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32",)
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True
REASON = r"^out is off"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    scores = _tf32(q) @ _tf32(k).mT * softmax_scale
    allowed = mask.allowed(q.shape[2], k.shape[2])
    if allowed is None:
        return (_tf32(torch.softmax(scores, dim=-1)) @ _tf32(v)).transpose(1, 2)
    weights = torch.softmax(scores.masked_fill(~allowed, -torch.inf), dim=-1)
    weights = weights.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return (_tf32(weights) @ _tf32(v)).transpose(1, 2)


def _tf32(x: Tensor) -> Tensor:
    """Rounded to the nearest; gradients pass as if it were not."""
    bits = x.detach().contiguous().view(torch.int32)
    rounded = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return x + (rounded - x).detach()
