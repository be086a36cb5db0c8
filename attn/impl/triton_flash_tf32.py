"""`triton_flash` with products in tf32: float32 in memory, factors read with 10 bits of mantissa; CUDA only.

Source: as `triton_flash`; tf32 in NVIDIA's PTX ISA, alternate floating-point data formats. It is judged by budgets of
plain attention whose factors are rounded so: docs/how-we-judge.md.
"""

from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cuda",)
DTYPES = ("float32",)
PRECISION = "tf32"
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    """Shapes as in `attn.contract`; returns out, as q.

    Raises:
        Unsupported: what the kernels lack, with what was asked for.
    """
    from attn.kernels.flash import host

    return host.attention(q, k, v, softmax_scale=softmax_scale, mask=mask, precision="tf32")
