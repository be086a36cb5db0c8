"""The module scales by embed_dim ** -0.5, not by head_dim ** -0.5.

Code grown from a single head, where the two are the same.
"""

from torch import Tensor

from attn.contract import Mask
from attn.impl import multihead_standard, standard

KIND = "module"
DEVICES = ("cpu",)
DTYPES = ("float32",)
MASKS = ("full", "causal")
BACKWARD = True
REASON = r"^out is off"
RIGHT_IN = r"_h01_|_s000001_"


class Attention(multihead_standard.Attention):
    def forward(self, x: Tensor, *, mask: Mask) -> Tensor:
        q, k, v = (linear(x).unflatten(-1, (-1, self.head_dim)) for linear in (self.q, self.k, self.v))
        out = standard.attention(q, k, v, softmax_scale=x.shape[-1] ** -0.5, mask=mask)
        return self.o(out.flatten(-2))
