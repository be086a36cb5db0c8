"""FlashAttention-3, of the module flash_attn_interface: Hopper only.

Source: Shah et al. 2024 (arXiv 2407.08608), folder hopper/ of github.com/Dao-AILab/flash-attention, version 3.0.0b1 as
it calls itself there, BSD-3-Clause. On no package index: built from there, for one CUDA and one torch.
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

_HEAD_DIMS = range(8, 257, 8)


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    """Shapes as in `attn.contract`; returns out, as q.

    Raises:
        Unsupported: no such package, a GPU that is not Hopper, head_dim beyond 256 or no multiple of 8,
            softmax_scale 0 under a causal mask.
    """
    with _package.wanted("`python setup.py install` in hopper/ of github.com/Dao-AILab/flash-attention"):
        from flash_attn_interface import flash_attn_func

    _package.refuse_capability(q, (9,), "FlashAttention-3")
    _package.refuse_scale(softmax_scale, mask, "FlashAttention-3")
    _package.refuse_head_dim(q, _HEAD_DIMS, "FlashAttention-3")
    found = flash_attn_func(q, k, v, softmax_scale=softmax_scale, causal=mask.kind == "causal")
    out: Tensor = found[0] if isinstance(found, tuple) else found  # lse came with it until 3.0.0b1
    return out
