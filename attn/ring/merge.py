"""Merging attention over disjoint sets of keys, by log-sum-exp, in float32."""

from __future__ import annotations

import torch
from torch import Tensor

Partial = tuple[Tensor, Tensor]  # out (b, s, h, d) and lse (b, h, s), float32, over the keys so far


def empty(q: Tensor) -> Partial:
    """The result of attention over no key at all: out 0 (b, s, h, d) and lse -inf (b, h, s), float32."""
    batch, seq_len, n_heads, _ = q.shape
    lse = q.new_full((batch, n_heads, seq_len), -torch.inf, dtype=torch.float32)
    return torch.zeros_like(q, dtype=torch.float32), lse


def merge_(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> None:
    """Add a block to `out` (b, s, h, d) and `lse` (b, h, s) in place; both are float32.

    out += sigmoid(block_lse - lse) * (block_out - out);  lse = log(exp(lse) + exp(block_lse))
    A row whose block is empty (block_lse -inf) is left as it is; a NaN stays one. On CUDA in one kernel of ours.
    """
    if out.device.type == "cuda":
        _fused_(out, lse, block_out, block_lse)
        return
    gap = torch.where(block_lse == -torch.inf, -torch.inf, block_lse - lse)
    share = torch.sigmoid(gap).transpose(1, 2)[..., None]
    out.lerp_(block_out.float(), share)
    torch.logaddexp(lse, block_lse, out=lse)


def _fused_(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> None:
    """The kernel reads and writes `lse` in one piece; of some queries only, it is copied there and back."""
    from attn.kernels.flash import host

    whole = lse.contiguous()
    host.merge_(out, whole, block_out, block_lse)
    if whole.data_ptr() != lse.data_ptr():
        lse.copy_(whole)


def add(partial: Partial | None, queries: slice, block: Partial) -> Partial:
    """`partial` with a block of some of its queries added in place; the first block is of all queries, and is taken."""
    if partial is None:
        return block[0].float(), block[1]
    merge_(partial[0][:, queries], partial[1][:, :, queries], *block)
    return partial
