"""PyTorch's nn.MultiheadAttention with the same weights: the yardstick of module rows.

Source: torch.nn.MultiheadAttention, batch_first, no biases, no weights returned.
"""

import torch
from torch import Tensor, nn

from attn.contract import Mask, Unsupported

KIND = "module"
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True


class Attention(nn.Module):
    """x (batch, seq_len, embed_dim) -> out of the same shape."""

    def __init__(self, embed_dim: int, n_heads: int, n_kv_heads: int) -> None:
        super().__init__()
        if n_kv_heads != n_heads:
            raise Unsupported(f"nn.MultiheadAttention has no grouped heads: {n_heads} heads, {n_kv_heads} kv heads")
        self.mha = nn.MultiheadAttention(embed_dim, n_heads, bias=False, batch_first=True)

    def load(self, wq: Tensor, wk: Tensor, wv: Tensor, wo: Tensor) -> None:
        """Take the weights that the harness gives, shapes as in `attn.contract`."""
        self.mha.in_proj_weight.data.copy_(torch.cat((wq, wk, wv)))
        self.mha.out_proj.weight.data.copy_(wo)

    def gradients(self) -> tuple[Tensor | None, ...]:
        """dwq, dwk, dwv, dwo after a backward."""
        dqkv = self.mha.in_proj_weight.grad
        assert dqkv is not None
        return *dqkv.chunk(3), self.mha.out_proj.weight.grad

    def forward(self, x: Tensor, *, mask: Mask) -> Tensor:
        """Scale head_dim ** -0.5. nn.MultiheadAttention marks hidden pairs with True."""
        allowed = mask.allowed(x.shape[1], x.shape[1], x.device)
        hidden = None if allowed is None else ~allowed
        out, _ = self.mha(x, x, x, need_weights=False, attn_mask=hidden, is_causal=hidden is not None)
        return out  # type: ignore[no-any-return]  # nn.Module calls are Any
