"""What sdpa_math, sdpa_flash, sdpa_efficient and sdpa_cudnn share: PyTorch's attention by one named backend."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel

from attn.contract import Mask, Unsupported
from attn.impl import _package

_ASKED = {
    SDPBackend.FLASH_ATTENTION: cuda.can_use_flash_attention,
    SDPBackend.EFFICIENT_ATTENTION: cuda.can_use_efficient_attention,
    SDPBackend.CUDNN_ATTENTION: cuda.can_use_cudnn_attention,
}  # the plain one takes everything


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, backend: SDPBackend) -> Tensor:
    """Shapes as in `attn.contract`; returns out, as q. No other backend takes over.

    Raises:
        Unsupported: PyTorch says that this backend cannot do it, or softmax_scale 0 where a kernel is causal.
    """
    square = q.shape[1] == k.shape[1]
    allowed = None if square else mask.allowed(q.shape[1], k.shape[1], q.device)
    causal, grouped = mask.kind == "causal" and square, q.shape[2] != k.shape[2]
    q_bhsd, k_bgtd, v_bgtd = (x.transpose(1, 2) for x in (q, k, v))
    asked = _ASKED.get(backend)
    if asked and not asked(cuda.SDPAParams(q_bhsd, k_bgtd, v_bgtd, allowed, 0.0, causal, grouped)):
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, {q.dtype}, {mask.kind}"
        raise Unsupported(f"PyTorch's {backend.name.lower()} does not take {shapes} on {q.device.type}")
    if asked and causal:
        _package.refuse_scale(softmax_scale, mask, f"PyTorch's {backend.name.lower()}")
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(
            q_bhsd, k_bgtd, v_bgtd, attn_mask=allowed, is_causal=causal, scale=softmax_scale, enable_gqa=grouped
        )
    return out.transpose(1, 2)
