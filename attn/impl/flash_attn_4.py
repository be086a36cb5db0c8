"""FlashAttention-4, of the package flash-attn-4 (module flash_attn.cute), written in CuTe DSL and compiled when called.

Source: github.com/Dao-AILab/flash-attention, folder flash_attn/cute, package flash-attn-4 4.0.0b36 (a pre-release),
BSD-3-Clause. Not in requirements: it needs CUDA 12.9 or newer and NVIDIA's CuTe DSL.
"""

from torch import Tensor

from attn.contract import Mask
from attn.impl import _package

KIND = "core"
DEVICES = ("cuda",)
DTYPES = ("bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True
DETERMINISTIC = False  # its backward adds up in any order

_HEAD_DIMS = range(8, 129, 8)


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    """Shapes as in `attn.contract`; returns out, as q.

    Raises:
        Unsupported: no such package, a GPU before Ampere, head_dim beyond 128 or no multiple of 8, softmax_scale 0
            under a causal mask.
    """
    with _package.wanted("pip install --pre flash-attn-4"):
        from flash_attn.cute import flash_attn_func

    _package.refuse_capability(q, (8, 9, 10, 11, 12), "FlashAttention-4")
    _package.refuse_scale(softmax_scale, mask, "FlashAttention-4")
    _package.refuse_head_dim(q, _HEAD_DIMS, "FlashAttention-4")
    found = flash_attn_func(q, k, v, softmax_scale=softmax_scale, causal=mask.kind == "causal")
    out: Tensor = found[0] if isinstance(found, tuple) else found  # with lse, which is None unless it is asked for
    return out
