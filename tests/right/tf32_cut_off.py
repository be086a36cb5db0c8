"""Products in tf32, what is beyond its 10 bits of mantissa cut off: what tensor cores do to what nobody has rounded.

It declares that, so it is judged by budgets of plain attention with such products.
"""

import torch
from torch import Tensor

from attn.contract import Mask
from tests.right import tf32_rounded

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float32",)
PRECISION = "tf32"
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    return tf32_rounded.with_products(CutOff, q, k, v, softmax_scale, mask)


class CutOff(tf32_rounded.Rounded):
    @staticmethod
    def low(x: Tensor) -> Tensor:
        _, exponent = torch.frexp(x)
        unit = torch.ldexp(torch.ones_like(x), (exponent - 11).clamp_min(-120))
        return torch.where(x.isfinite() & (x != 0), torch.trunc(x / unit) * unit, x)
