"""FlashAttention-3, of the module flash_attn_interface: Hopper only.

Source: Shah et al. 2024 (arXiv 2407.08608), folder hopper/ of github.com/Dao-AILab/flash-attention, version 3.0.0b1 as
it calls itself there, BSD-3-Clause. On no package index: built from there, for one CUDA and one torch.
"""

from torch import Tensor

from attn.contract import Mask, Unsupported
from attn.impl import _package

KIND = "core"
DEVICES = ("cuda",)
DTYPES = ("bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True
DETERMINISTIC = False  # its backward adds up in any order

_LARGEST = 256


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    """Shapes as in `attn.contract`; returns out, as q.

    Raises:
        Unsupported: no such package, a GPU that is not Hopper, head_dim beyond 256, softmax_scale 0 under a
            causal mask.
    """
    with _package.wanted("`python setup.py install` in hopper/ of github.com/Dao-AILab/flash-attention"):
        from flash_attn_interface import flash_attn_func

    _package.refuse_capability(q, (9,), "FlashAttention-3")
    _package.refuse_scale(softmax_scale, mask, "FlashAttention-3")
    if q.shape[-1] > _LARGEST:
        raise Unsupported(f"head_dim {q.shape[-1]}, FlashAttention-3 has 1 to {_LARGEST}")
    found = flash_attn_func(q, k, v, softmax_scale=softmax_scale, causal=mask.kind == "causal")
    out: Tensor = found[0] if isinstance(found, tuple) else found  # lse came with it until 3.0.0b1
    return out
