"""PyTorch's scaled_dot_product_attention, whichever backend it picks: the yardstick of core rows.

Source: torch.nn.functional.scaled_dot_product_attention.
"""

import torch.nn.functional as F
from torch import Tensor

from attn.contract import Mask, Unsupported

KIND = "core"
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    """Shapes as in `attn.contract`; returns out, as q.

    Raises:
        Unsupported: softmax_scale 0 under a causal mask, where PyTorch's fused kernels hide keys before they scale.
    """
    square = q.shape[1] == k.shape[1]
    allowed = None if square else mask.allowed(q.shape[1], k.shape[1], q.device)
    if softmax_scale == 0 and mask.kind == "causal" and square:
        raise Unsupported("softmax_scale 0 under a causal mask: PyTorch's fused kernels compute -inf x 0 = NaN")
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=allowed,
        is_causal=mask.kind == "causal" and square,  # PyTorch's own is aligned at the top left
        scale=softmax_scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)
