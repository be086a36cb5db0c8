"""dq of flash attention in Triton, from lse and delta: P is computed anew, never stored; no atomics.

A program holds BLOCK_M queries of one head and goes over the keys that they see. Phases as in the forward: blocks of
keys that all see, without a mask; then those through which the diagonal or the last key runs, with one.
Source: Dao 2023 (arXiv 2307.08691), algorithm 2, with dq in a kernel of its own.
"""

import triton
import triton.language as tl

from attn.kernels.flash.tiles import load_rows, load_tile, store_rows, tile_of


@triton.jit
def dq_over_keys(
    dq,
    queries,
    into,
    of_rows,
    delta_of_rows,
    k,
    v,
    k_b,
    k_s,
    k_h,
    v_b,
    v_s,
    v_h,
    batch,
    kv_head,
    start,
    end,
    kv_seq_len,
    seen,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
    TMA: tl.constexpr,
):
    """Shares of keys start to end in dq [BLOCK_M, BLOCK_D]. `seen` as in the forward."""
    # [BLOCK_N, BLOCK_D]
    k_tile = tile_of(k, k_b, k_s, k_h, batch, kv_head, start, BLOCK_N, BLOCK_D, TMA)
    v_tile = tile_of(v, v_b, v_s, v_h, batch, kv_head, start, BLOCK_N, BLOCK_D, TMA)
    for n in tl.range(start, end, BLOCK_N):
        keys = load_tile(k_tile, batch, kv_head, n, kv_seq_len, BLOCK_N, HEAD_DIM, BLOCK_D, MASKED, TMA)
        values = load_tile(v_tile, batch, kv_head, n, kv_seq_len, BLOCK_N, HEAD_DIM, BLOCK_D, MASKED, TMA)
        # [BLOCK_M, BLOCK_N]
        logits = tl.dot(queries, keys.T, input_precision=PRECISION)
        weights = tl.exp2(logits * scale - of_rows[:, None])
        if MASKED:
            weights = tl.where((n + tl.arange(0, BLOCK_N))[None, :] < seen[:, None], weights, 0.0)
        dweights = tl.dot(into, values.T, input_precision=PRECISION)
        dlogits = weights * (dweights - delta_of_rows[:, None])
        dq = tl.dot(dlogits.to(keys.dtype), keys, dq, input_precision=PRECISION)
        if not TMA:
            k_tile += tl.cast(k_s, tl.int64) * BLOCK_N
            v_tile += tl.cast(v_s, tl.int64) * BLOCK_N
    return dq


@triton.jit
def dq_kernel(
    q,
    k,
    v,
    dout,
    lse,  # of delta_kernel, as delta
    delta,
    dq,
    q_b,
    q_s,
    q_h,
    k_b,
    k_s,
    k_h,
    v_b,
    v_s,
    v_h,
    dout_b,
    dout_s,
    dout_h,
    dq_b,
    dq_s,
    dq_h,
    scale,
    softmax_scale,
    seq_len,
    row_len,
    kv_seq_len,
    shift,
    n_heads,
    group,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    TMA: tl.constexpr,
):
    """One program a tile of BLOCK_M queries of one head."""
    blocks = tl.cdiv(seq_len, BLOCK_M)
    block = blocks - 1 - tl.program_id(0) % blocks
    batch_head = tl.program_id(0) // blocks
    batch, head = batch_head // n_heads, batch_head % n_heads
    kv_head = head // group
    first = block * BLOCK_M
    rows = first + tl.arange(0, BLOCK_M)
    # [BLOCK_M, BLOCK_D]
    queries = load_rows(q, q_b, q_s, q_h, batch, head, first, seq_len, BLOCK_M, HEAD_DIM, BLOCK_D, True, TMA)
    into = load_rows(
        dout, dout_b, dout_s, dout_h, batch, head, first, seq_len, BLOCK_M, HEAD_DIM, BLOCK_D, True, TMA
    )  # fmt: skip
    at = tl.cast(batch_head, tl.int64) * row_len + rows
    of_rows, delta_of_rows = tl.load(lse + at), tl.load(delta + at)

    seen = tl.minimum(rows + shift + 1, kv_seq_len)
    seen_by_all = tl.maximum(0, tl.minimum(first + shift + 1, kv_seq_len))
    end = tl.maximum(0, tl.minimum(first + BLOCK_M + shift, kv_seq_len))
    edge = seen_by_all // BLOCK_N * BLOCK_N

    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    sums = dq_over_keys(
        sums, queries, into, of_rows, delta_of_rows, k, v, k_b, k_s, k_h, v_b, v_s, v_h, batch, kv_head,
        0, edge, kv_seq_len, seen, scale, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION, False, TMA,
    )  # fmt: skip
    sums = dq_over_keys(
        sums, queries, into, of_rows, delta_of_rows, k, v, k_b, k_s, k_h, v_b, v_s, v_h, batch, kv_head,
        edge, end, kv_seq_len, seen, scale, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION, True, TMA,
    )  # fmt: skip
    sums *= softmax_scale
    store_rows(dq, dq_b, dq_s, dq_h, batch, head, first, seq_len, sums, BLOCK_M, HEAD_DIM, BLOCK_D)
