"""PyTorch's scaled_dot_product_attention by its flash backend, no other.

Source: torch.nn.functional.scaled_dot_product_attention under torch.nn.attention.sdpa_kernel (BSD-3-Clause), the
version that is installed. It is FlashAttention-2 (arXiv 2307.08691).
"""

from torch import Tensor
from torch.nn.attention import SDPBackend

from attn.contract import Mask
from attn.impl import _sdpa

KIND = "core"
DEVICES = ("cuda",)
DTYPES = ("bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True
DETERMINISTIC = False  # its backward adds up in any order


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    """Shapes as in `attn.contract`; returns out, as q.

    Raises:
        Unsupported: PyTorch says that this backend cannot do it.
    """
    return _sdpa.attention(q, k, v, softmax_scale=softmax_scale, mask=mask, backend=SDPBackend.FLASH_ATTENTION)
