"""The module keeps the softmax weights by the address of x, and takes them again for other values there.

Attention maps kept for plotting and then used: only v is new at the second call.
"""

import torch
from torch import Tensor

from attn.contract import Mask
from attn.impl import multihead_standard

KIND = "module"
DEVICES = ("cpu",)
DTYPES = ("float32",)
MASKS = ("full", "causal")
BACKWARD = False
REASON = r"^on other inputs in the same buffers: out is off"
RIGHT_IN = r"_s000001_"


class Attention(multihead_standard.Attention):
    kept: tuple[int, Tensor] = (0, torch.empty(0))

    def forward(self, x: Tensor, *, mask: Mask) -> Tensor:
        q, k, v = (linear(x).unflatten(-1, (-1, self.head_dim)) for linear in (self.q, self.k, self.v))
        k, v = (heads.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for heads in (k, v))
        if self.kept[0] != x.data_ptr():
            scores = torch.einsum("bshd,bthd->bhst", q, k) * self.head_dim**-0.5
            allowed = mask.allowed(x.shape[1], x.shape[1])
            if allowed is not None:
                scores = scores.masked_fill(~allowed, -torch.inf)
            self.kept = x.data_ptr(), torch.softmax(scores, dim=-1)
        return self.o(torch.einsum("bhst,bthd->bshd", self.kept[1], v).flatten(-2))
