"""dq of flash attention in Triton, from lse and delta: P is computed anew, never stored; no atomics.

A program holds BLOCK_M queries of one head and goes over the keys that they see. Phases as in the forward: blocks of
keys that all see, without a mask; then those through which the diagonal or the last key runs, with one.
Source: Dao 2023 (arXiv 2307.08691), algorithm 2, with dq in a kernel of its own.
"""

import triton
import triton.language as tl

from attn.kernels.flash.tiles import load_rows, row_of, store_rows


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
    for n in tl.range(start, end, BLOCK_N):
        # [BLOCK_N, BLOCK_D]
        keys = load_rows(
            k, k_b, k_s, k_h, batch, kv_head, n, kv_seq_len, BLOCK_N, HEAD_DIM, BLOCK_D, MASKED, TMA
        )  # fmt: skip
        values = load_rows(
            v, v_b, v_s, v_h, batch, kv_head, n, kv_seq_len, BLOCK_N, HEAD_DIM, BLOCK_D, MASKED, TMA
        )  # fmt: skip
        # [BLOCK_M, BLOCK_N]
        logits = tl.dot(queries, keys.T, input_precision=PRECISION)
        weights = tl.exp2(logits * scale - of_rows[:, None])
        if MASKED:
            weights = tl.where((n + tl.arange(0, BLOCK_N))[None, :] < seen[:, None], weights, 0.0)
        dweights = tl.dot(into, values.T, input_precision=PRECISION)
        dlogits = weights * (dweights - delta_of_rows[:, None])
        dq = tl.dot(dlogits.to(keys.dtype), keys, dq, input_precision=PRECISION)
    return dq


@triton.jit
def dq_kernel(
    q,
    k,
    v,
    dout,
    lse,
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
    of_rows, delta_of_rows = row_of(lse, delta, batch_head, rows, seq_len)

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
