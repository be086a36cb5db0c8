"""Multi-head attention, projections included: three input products, textbook attention, output product.

Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.2; no biases.
"""

from torch import Tensor, nn

from attn.contract import Mask
from attn.impl import standard

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
        self.q = nn.Linear(embed_dim, n_heads * self.head_dim, bias=False)
        self.k = nn.Linear(embed_dim, n_kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(embed_dim, n_kv_heads * self.head_dim, bias=False)
        self.o = nn.Linear(n_heads * self.head_dim, embed_dim, bias=False)

    def load(self, wq: Tensor, wk: Tensor, wv: Tensor, wo: Tensor) -> None:
        """Take the weights that the harness gives, shapes as in `attn.contract`."""
        for linear, weight in ((self.q, wq), (self.k, wk), (self.v, wv), (self.o, wo)):
            linear.weight.data.copy_(weight)

    def gradients(self) -> tuple[Tensor | None, ...]:
        """dwq, dwk, dwv, dwo after a backward."""
        return self.q.weight.grad, self.k.weight.grad, self.v.weight.grad, self.o.weight.grad

    def forward(self, x: Tensor, *, mask: Mask) -> Tensor:
        """Scale head_dim ** -0.5."""
        q, k, v = (linear(x).unflatten(-1, (-1, self.head_dim)) for linear in (self.q, self.k, self.v))
        out = standard.attention(q, k, v, softmax_scale=self.head_dim**-0.5, mask=mask)
        return self.o(out.flatten(-2))  # type: ignore[no-any-return]  # nn.Module calls are Any
