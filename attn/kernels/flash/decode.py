"""Attention of few queries against many keys in Triton: the keys are split over programs, whose results are reduced.

    1. A program takes one part of the keys and the queries of a whole group of heads (they share k and v), so that
       a tile of the tensor cores has as many rows as there are. It writes out and lse of its part, float32.
    2. The parts are merged (reduce.py).
Source: Dao et al. 2023, Flash-Decoding; grouped heads in one tile as in Hong et al. 2023 (arXiv 2311.01282).
"""

import triton
import triton.language as tl

from attn.kernels.flash.forward import over_keys
from attn.kernels.flash.tiles import LN_2


@triton.jit
def decode_kernel(
    q,
    k,
    v,
    part_out,  # (parts, batch, n_heads, seq_len, HEAD_DIM), float32, contiguous
    part_lse,  # (parts, batch, n_heads, seq_len), float32, contiguous
    q_b,
    q_s,
    q_h,
    k_b,
    k_s,
    k_h,
    v_b,
    v_s,
    v_h,
    scale,
    seq_len,
    kv_seq_len,
    shift,
    n_heads,
    group,
    batch_size,
    part,  # keys a program takes, a multiple of BLOCK_N
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Programs: (kv heads of all batches x tiles of their rows, parts of the keys). A row: a query of one head."""
    n_kv_heads = n_heads // group
    tiles = tl.cdiv(seq_len * group, BLOCK_M)
    first_row = tl.program_id(0) % tiles * BLOCK_M
    batch_head = tl.program_id(0) // tiles
    batch, kv_head = batch_head // n_kv_heads, batch_head % n_kv_heads
    row = first_row + tl.arange(0, BLOCK_M)
    query, head = row // group, kv_head * group + row % group
    inside = row < seq_len * group
    columns = tl.arange(0, BLOCK_D)
    # [BLOCK_M, BLOCK_D]
    of_row = q + tl.cast(batch, tl.int64) * q_b + tl.cast(query, tl.int64) * q_s + tl.cast(head, tl.int64) * q_h
    mask = inside[:, None] & (columns < HEAD_DIM)[None, :]
    queries = tl.load(of_row[:, None] + columns[None, :], mask=mask, other=0.0)

    start = tl.program_id(1) * part
    seen = tl.minimum(query + shift + 1, kv_seq_len)
    seen_by_all = tl.minimum(first_row // group + shift + 1, kv_seq_len)
    seen_by_any = tl.minimum((first_row + BLOCK_M - 1) // group + shift + 1, kv_seq_len)
    end = tl.minimum(tl.maximum(seen_by_any, start), start + part)
    edge = tl.minimum(tl.maximum(seen_by_all, start), end) // BLOCK_N * BLOCK_N
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    acc, l, m = over_keys(
        acc, l, m, queries, k, v, k_b, k_s, k_h, v_b, v_s, v_h, batch, kv_head, start, edge, kv_seq_len, seen, scale,
        HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION, False, False, False,
    )  # fmt: skip
    acc, l, m = over_keys(
        acc, l, m, queries, k, v, k_b, k_s, k_h, v_b, v_s, v_h, batch, kv_head, edge, end, kv_seq_len, seen, scale,
        HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION, True, False, False,
    )  # fmt: skip

    nothing = l == 0.0
    total = tl.where(nothing, 1.0, l)
    at = ((tl.cast(tl.program_id(1), tl.int64) * batch_size + batch) * n_heads + head) * seq_len + query
    tl.store(part_out + at[:, None] * HEAD_DIM + columns[None, :], acc / total[:, None], mask=mask)
    tl.store(part_lse + at, tl.where(nothing, float("-inf"), (m + tl.log2(total)) * LN_2), mask=inside)
