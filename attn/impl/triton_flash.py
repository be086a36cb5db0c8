"""Our flash attention in Triton: forward, backward and split-KV decoding; CUDA only (checks interpret it on a CPU).

Source: Dao 2023 (arXiv 2307.08691); `attn.kernels.flash` for the kernels and what they take from whom.
"""

import torch
from torch import Tensor

from attn.contract import Mask, Unsupported

KIND = "core"
DEVICES = ("cuda",)
DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    """Shapes as in `attn.contract`; returns out, as q.

    Raises:
        Unsupported: what the kernels lack, with what was asked for.
    """
    from attn.kernels.flash import host

    return host.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> tuple[Tensor, Tensor]:
    """Forward only: out (as q) and lse (batch, n_heads, seq_len), float32, natural logarithm.

    Raises:
        Unsupported: gradients are asked for, and as `attention`.
    """
    from attn.kernels.flash import host

    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise Unsupported("attention_with_lse is forward only: its lse carries no gradient")
    shift = host.shift_of(mask, q.shape[1], k.shape[1])
    return host.forward(q, k, v, softmax_scale=softmax_scale, shift=shift)
