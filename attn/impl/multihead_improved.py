"""Multi-head attention, projections included: one fused input product, then `improved`, then the output product.

Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.2; no biases.
"""

import torch
from torch import Tensor, nn

from attn.contract import Mask
from attn.impl import improved

KIND = "module"
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True


class Attention(nn.Module):
    """x (batch, seq_len, embed_dim) -> out of the same shape."""

    def __init__(self, embed_dim: int, n_heads: int, n_kv_heads: int) -> None:
        super().__init__()
        self.head_dim = embed_dim // n_heads
        self.heads = (n_heads, n_kv_heads, n_kv_heads)
        self.qkv = nn.Linear(embed_dim, sum(self.heads) * self.head_dim, bias=False)
        self.o = nn.Linear(n_heads * self.head_dim, embed_dim, bias=False)

    def load(self, wq: Tensor, wk: Tensor, wv: Tensor, wo: Tensor) -> None:
        """Take the weights that the harness gives, shapes as in `attn.contract`."""
        self.qkv.weight.data.copy_(torch.cat((wq, wk, wv)))
        self.o.weight.data.copy_(wo)

    def gradients(self) -> tuple[Tensor | None, ...]:
        """dwq, dwk, dwv, dwo after a backward."""
        dqkv = self.qkv.weight.grad
        assert dqkv is not None
        return *dqkv.split([heads * self.head_dim for heads in self.heads]), self.o.weight.grad

    def forward(self, x: Tensor, *, mask: Mask) -> Tensor:
        """Scale head_dim ** -0.5."""
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        q, k, v = qkv.split(self.heads, dim=2)
        out = improved.attention(q, k, v, softmax_scale=self.head_dim**-0.5, mask=mask)
        return self.o(out.flatten(-2))  # type: ignore[no-any-return]  # nn.Module calls are Any
