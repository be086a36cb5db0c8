"""Exact attention in blocks of queries, on the library's own matrix products (CPU, 16-bit).

Where the processor multiplies bfloat16, PyTorch's fused CPU kernel reaches less than half of the ceiling of its matrix
products; those of (256 queries) x (all keys) for a few heads at a time reach more, and the block of scores stays in
cache.
Products and roundings are those of textbook attention in the same dtype, so the error is too.
Source: Rabe and Staats 2021 (arXiv 2112.05682), without splitting the keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attn.contract import Mask

BLOCK_QUERIES = 256  # a block of scores, 256 x 2048 x 2 bytes, is 1 MiB a head: the size of an L2 cache
HEADS_PER_THREAD = 2


def forward(
    q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, with_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Forward only. Shapes as in `attn.contract`; returns `out` (as q) and `lse` (None unless asked for)."""
    batch, seq_len, n_heads, head_dim = q.shape
    kv_seq_len, group = k.shape[1], n_heads // k.shape[2]
    q = (q * softmax_scale).transpose(1, 2).reshape(-1, seq_len, head_dim)
    k, v = (x.transpose(1, 2).repeat_interleave(group, dim=1).reshape(-1, kv_seq_len, head_dim) for x in (k, v))
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32) if with_lse else None
    step = HEADS_PER_THREAD * torch.get_num_threads()
    for first in range(0, q.shape[0], step):
        heads = slice(first, first + step)
        for start in range(0, seq_len, BLOCK_QUERIES):
            rows = slice(start, min(start + BLOCK_QUERIES, seq_len))
            _block(q[heads, rows], k[heads], v[heads], out[heads, rows], start, seq_len, mask, lse, heads)
    out = out.reshape(batch, n_heads, seq_len, head_dim).transpose(1, 2)
    return out, None if lse is None else lse.reshape(batch, n_heads, seq_len)


def _block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    start: int,
    seq_len: int,
    mask: Mask,
    lse: Tensor | None,
    heads: slice,
) -> None:
    rows, kv_seq_len = q.shape[1], k.shape[1]
    shift = kv_seq_len - seq_len + start  # query `row` of this block sees keys 0 to row + shift
    seen = kv_seq_len if mask.kind == "full" else max(0, min(kv_seq_len, rows + shift))
    scores = torch.bmm(q, k[:, :seen].mT)
    if mask.kind == "causal":
        edge = max(0, min(seen, shift + 1))  # keys before it are seen by every query of the block
        hidden = torch.ones(rows, seen - edge, dtype=torch.bool).triu_(shift + 1 - edge)
        scores[:, :, edge:].masked_fill_(hidden, -torch.inf)
    if lse is not None:
        lse[heads, start : start + rows] = torch.logsumexp(scores.float(), -1)
    torch.bmm(torch.softmax(scores, -1), v[:, :seen], out=out)
    if mask.kind == "causal" and shift < 0:
        out[:, : min(rows, -shift)] = 0.0  # rows that see no key
