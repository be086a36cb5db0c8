"""The module loads wk where wv is due, and wv where wk is.

Converting a checkpoint whose fused weight is ordered q, v, k; both have the same shape.
"""

from torch import Tensor

from attn.contract import Mask
from attn.impl import multihead_standard

KIND = "module"
DEVICES = ("cpu",)
DTYPES = ("float32", "bfloat16")
MASKS = ("full", "causal")
BACKWARD = True
REASON = r"^out is off"


class Attention(multihead_standard.Attention):
    def load(self, wq: Tensor, wk: Tensor, wv: Tensor, wo: Tensor) -> None:
        super().load(wq, wv, wk, wo)

    def gradients(self) -> tuple[Tensor | None, ...]:
        dwq, dwv, dwk, dwo = super().gradients()
        return dwq, dwk, dwv, dwo

    def forward(self, x: Tensor, *, mask: Mask) -> Tensor:
        return super().forward(x, mask=mask)
