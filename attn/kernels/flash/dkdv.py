"""dk and dv of flash attention in Triton, from lse and delta: P is computed anew, never stored; no atomics.

A program holds BLOCK_N keys of one kv head and goes over the queries that see them, of all heads of its group, so that
dk and dv are summed where they are (twice the same: the same bits). Phases, for every head:
    1. tiles of queries through which the diagonal runs, with a mask; those above it are never loaded
    2. tiles of queries that see all of its keys, without one. Rows past the end have lse = inf, so that their P is 0;
       keys past the end are computed and not stored.
Source: Dao 2023 (arXiv 2307.08691), algorithm 2, with dq in a kernel of its own.
"""

import triton
import triton.language as tl

from attn.kernels.flash.tiles import load_rows, row_of, store_rows


@triton.jit
def over_queries(
    dk,
    dv,
    keys,
    values,
    q,
    dout,
    lse,
    delta,
    q_b,
    q_s,
    q_h,
    dout_b,
    dout_s,
    dout_h,
    batch,
    head,
    batch_head,
    start,
    end,
    seq_len,
    first_key,
    shift,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
    TMA: tl.constexpr,
):
    """Shares of queries start to end in dk and dv [BLOCK_N, BLOCK_D]; everything is held keys first."""
    for first in tl.range(start, end, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        # [BLOCK_M, BLOCK_D]
        queries = load_rows(q, q_b, q_s, q_h, batch, head, first, seq_len, BLOCK_M, HEAD_DIM, BLOCK_D, True, TMA)
        of_rows, delta_of_rows = row_of(lse, delta, batch_head, rows, seq_len)
        # [BLOCK_N, BLOCK_M]
        logits = tl.dot(keys, queries.T, input_precision=PRECISION)
        weights = tl.exp2(logits * scale - of_rows[None, :])
        if MASKED:
            seen = (first_key + tl.arange(0, BLOCK_N))[:, None] <= (rows + shift)[None, :]
            weights = tl.where(seen, weights, 0.0)
        # [BLOCK_M, BLOCK_D]
        into = load_rows(
            dout, dout_b, dout_s, dout_h, batch, head, first, seq_len, BLOCK_M, HEAD_DIM, BLOCK_D, True, TMA
        )  # fmt: skip
        dv = tl.dot(weights.to(into.dtype), into, dv, input_precision=PRECISION)
        dweights = tl.dot(values, into.T, input_precision=PRECISION)
        dlogits = weights * (dweights - delta_of_rows[None, :])
        dk = tl.dot(dlogits.to(queries.dtype), queries, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def dkdv_kernel(
    q,
    k,
    v,
    dout,
    lse,
    delta,
    dk,
    dv,
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
    dk_b,
    dk_s,
    dk_h,
    dv_b,
    dv_s,
    dv_h,
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
    """One program a tile of BLOCK_N keys of one kv head."""
    blocks = tl.cdiv(kv_seq_len, BLOCK_N)
    first_key = tl.program_id(0) % blocks * BLOCK_N
    batch_head = tl.program_id(0) // blocks
    n_kv_heads = n_heads // group
    batch, kv_head = batch_head // n_kv_heads, batch_head % n_kv_heads
    # [BLOCK_N, BLOCK_D]
    keys = load_rows(k, k_b, k_s, k_h, batch, kv_head, first_key, kv_seq_len, BLOCK_N, HEAD_DIM, BLOCK_D, True, TMA)
    values = load_rows(v, v_b, v_s, v_h, batch, kv_head, first_key, kv_seq_len, BLOCK_N, HEAD_DIM, BLOCK_D, True, TMA)

    # from `start` on queries see a key of the tile, from `edge` on all of it
    start = tl.maximum(0, first_key - shift) // BLOCK_M * BLOCK_M
    edge = tl.cdiv(tl.maximum(0, first_key + BLOCK_N - 1 - shift), BLOCK_M) * BLOCK_M
    of_keys = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    of_values = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for head in range(kv_head * group, kv_head * group + group):
        row = batch * n_heads + head
        of_keys, of_values = over_queries(
            of_keys, of_values, keys, values, q, dout, lse, delta, q_b, q_s, q_h, dout_b, dout_s, dout_h,
            batch, head, row, start, tl.minimum(edge, seq_len), seq_len, first_key, shift, scale,
            HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION, True, TMA,
        )  # fmt: skip
        of_keys, of_values = over_queries(
            of_keys, of_values, keys, values, q, dout, lse, delta, q_b, q_s, q_h, dout_b, dout_s, dout_h,
            batch, head, row, edge, seq_len, seq_len, first_key, shift, scale,
            HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION, False, TMA,
        )  # fmt: skip
    of_keys *= softmax_scale
    store_rows(dk, dk_b, dk_s, dk_h, batch, kv_head, first_key, kv_seq_len, of_keys, BLOCK_N, HEAD_DIM, BLOCK_D)
    store_rows(dv, dv_b, dv_s, dv_h, batch, kv_head, first_key, kv_seq_len, of_values, BLOCK_N, HEAD_DIM, BLOCK_D)
