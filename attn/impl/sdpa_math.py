"""PyTorch's scaled_dot_product_attention by its plain formulas, no other.

Source: torch.nn.functional.scaled_dot_product_attention under torch.nn.attention.sdpa_kernel (BSD-3-Clause), the
version that is installed. In torch 2.13 it hides keys by adding -inf, so a NaN in k reaches queries that do not see it:
the judge refuses it (on the CPU; no GPU has run it).
"""

from torch import Tensor
from torch.nn.attention import SDPBackend

from attn.contract import Mask
from attn.impl import _sdpa

KIND = "core"
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    """Shapes as in `attn.contract`; returns out, as q.

    Raises:
        Unsupported: PyTorch says that this backend cannot do it.
    """
    return _sdpa.attention(q, k, v, softmax_scale=softmax_scale, mask=mask, backend=SDPBackend.MATH)
