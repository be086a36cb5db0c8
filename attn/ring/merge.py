"""Merging attention over disjoint sets of keys, by log-sum-exp, in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def empty(q: Tensor) -> tuple[Tensor, Tensor]:
    """The result of attention over no key at all: out 0 (b, s, h, d) and lse -inf (b, h, s), float32."""
    batch, seq_len, n_heads, _ = q.shape
    lse = q.new_full((batch, n_heads, seq_len), -torch.inf, dtype=torch.float32)
    return torch.zeros_like(q, dtype=torch.float32), lse


def merge_(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> None:
    """Add a block to `out` (b, s, h, d) and `lse` (b, h, s) in place; both are float32.

    out -= sigmoid(block_lse - lse) * (out - block_out);  lse -= logsigmoid(lse - block_lse)
    A row whose block is empty (block_lse -inf) is left as it is; a NaN stays one.
    """
    gap = torch.where(block_lse == -torch.inf, -torch.inf, block_lse - lse)
    share = torch.sigmoid(gap).transpose(1, 2)[..., None]
    out.sub_(share * (out - block_out.float()))
    lse.copy_(torch.where(lse == -torch.inf, block_lse, lse - F.logsigmoid(-gap)))
