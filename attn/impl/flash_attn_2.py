"""FlashAttention-2, of the package flash_attn.

Source: Dao 2023 (arXiv 2307.08691), package flash_attn 2.1 or newer (before, causal was aligned at the top left),
BSD-3-Clause. Not in requirements: it is built for one CUDA and one torch.
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

_HEAD_DIMS = range(1, 257)


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    """Shapes as in `attn.contract`; returns out, as q.

    Raises:
        Unsupported: no such package, head_dim beyond 256, softmax_scale 0 under a causal mask.
    """
    with _package.wanted("pip install flash-attn --no-build-isolation"):
        import flash_attn

    _package.refuse_scale(softmax_scale, mask, "FlashAttention-2")
    _package.refuse_head_dim(q, _HEAD_DIMS, "FlashAttention-2")
    causal = mask.kind == "causal"
    return flash_attn.flash_attn_func(q, k, v, softmax_scale=softmax_scale, causal=causal)  # type: ignore[no-any-return]
