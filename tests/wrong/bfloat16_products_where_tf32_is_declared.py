"""Products are in bfloat16, inputs and results float32, and the row declares products in tf32.

What PyTorch does under `torch.set_float32_matmul_precision("medium")`, beside `"high"`, which is tf32.
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
REASON = r"^out is off"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    return tf32_rounded.with_products(InBfloat16, q, k, v, softmax_scale, mask)


class InBfloat16(tf32_rounded.Rounded):
    @staticmethod
    def low(x: Tensor) -> Tensor:
        return x.to(torch.bfloat16).float()
