"""dk and dv of flash attention in Triton, from lse and delta: P is computed anew, never stored; no atomics.

A program holds BLOCK_N keys of one kv head and goes over the queries that see them, of all heads of its group, so that
dk and dv are summed where they are (twice the same: the same bits). Phases, each one loop over all heads (a loop of
heads around both keeps the accumulators out of tensor memory on sm_100):
    1. tiles of queries through which the diagonal runs, and the last where it is no whole one: masked. Those above the
       diagonal are never loaded.
    2. tiles of queries that see all of its keys: no mask, no bounds
Rows past the end have lse inf (delta.py), so that their P is 0; keys past the end are computed and not stored.
Source: Dao 2023 (arXiv 2307.08691), algorithm 2, with dq in a kernel of its own.
"""

import triton
import triton.language as tl

from attn.kernels.flash.tiles import load_rows, load_tile, store_rows, tile_of


@triton.jit
def add_queries(
    dk,
    dv,
    keys,
    values,
    queries,
    into,
    of_rows,
    delta_of_rows,
    first,
    first_key,
    shift,
    scale,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Share of a tile of queries in dk and dv [BLOCK_N, BLOCK_D]; everything is held keys first."""
    # [BLOCK_N, BLOCK_M]
    logits = tl.dot(keys, queries.T, input_precision=PRECISION)
    weights = tl.exp2(logits * scale - of_rows[None, :])
    if MASKED:
        seen = (first_key + tl.arange(0, BLOCK_N))[:, None] <= (first + tl.arange(0, BLOCK_M) + shift)[None, :]
        weights = tl.where(seen, weights, 0.0)
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
    lse,  # of delta_kernel, as delta
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
    """One program a tile of BLOCK_N keys of one kv head."""
    blocks = tl.cdiv(kv_seq_len, BLOCK_N)
    first_key = tl.program_id(0) % blocks * BLOCK_N
    batch_head = tl.program_id(0) // blocks
    n_kv_heads = n_heads // group
    batch, kv_head = batch_head // n_kv_heads, batch_head % n_kv_heads
    # [BLOCK_N, BLOCK_D]
    keys = load_rows(k, k_b, k_s, k_h, batch, kv_head, first_key, kv_seq_len, BLOCK_N, HEAD_DIM, BLOCK_D, True, TMA)
    values = load_rows(v, v_b, v_s, v_h, batch, kv_head, first_key, kv_seq_len, BLOCK_N, HEAD_DIM, BLOCK_D, True, TMA)

    # From `start` on queries see a key of the tile, from `edge` on all of it; from `rest` on they are no whole tile.
    start = tl.maximum(0, first_key - shift) // BLOCK_M * BLOCK_M
    edge = tl.cdiv(tl.maximum(0, first_key + BLOCK_N - 1 - shift), BLOCK_M) * BLOCK_M
    rest = tl.maximum(edge, seq_len // BLOCK_M * BLOCK_M)
    diagonal = tl.cdiv(tl.maximum(0, tl.minimum(edge, seq_len) - start), BLOCK_M)
    masked = diagonal + (rest < seq_len).to(tl.int32)  # tiles of each head
    of_keys = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    of_values = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)

    head, i = kv_head * group, 0
    for _ in tl.range(0, group * masked):
        first = tl.where(i < diagonal, start + i * BLOCK_M, rest)
        # [BLOCK_M, BLOCK_D]
        queries = load_rows(q, q_b, q_s, q_h, batch, head, first, seq_len, BLOCK_M, HEAD_DIM, BLOCK_D, True, TMA)
        into = load_rows(
            dout, dout_b, dout_s, dout_h, batch, head, first, seq_len, BLOCK_M, HEAD_DIM, BLOCK_D, True, TMA
        )  # fmt: skip
        at = tl.cast(batch * n_heads + head, tl.int64) * row_len + first + tl.arange(0, BLOCK_M)
        of_keys, of_values = add_queries(
            of_keys, of_values, keys, values, queries, into, tl.load(lse + at), tl.load(delta + at),
            first, first_key, shift, scale, BLOCK_M, BLOCK_N, PRECISION, True,
        )  # fmt: skip
        i += 1
        head = tl.where(i == masked, head + 1, head)
        i = tl.where(i == masked, 0, i)

    # Pointers go on by a tile, and from the last tile of a head to the first of the next.
    head, first = kv_head * group, edge
    back = tl.cast(rest - BLOCK_M - edge, tl.int64)
    q_tile = tile_of(q, q_b, q_s, q_h, batch, head, edge, BLOCK_M, BLOCK_D, TMA)
    dout_tile = tile_of(dout, dout_b, dout_s, dout_h, batch, head, edge, BLOCK_M, BLOCK_D, TMA)
    at = tl.cast(batch * n_heads + head, tl.int64) * row_len + edge + tl.arange(0, BLOCK_M)
    lse_tile, delta_tile = lse + at, delta + at
    for _ in tl.range(0, group * ((rest - edge) // BLOCK_M)):
        queries = load_tile(q_tile, batch, head, first, seq_len, BLOCK_M, HEAD_DIM, BLOCK_D, False, TMA)
        into = load_tile(dout_tile, batch, head, first, seq_len, BLOCK_M, HEAD_DIM, BLOCK_D, False, TMA)
        of_keys, of_values = add_queries(
            of_keys, of_values, keys, values, queries, into, tl.load(lse_tile), tl.load(delta_tile),
            first, first_key, shift, scale, BLOCK_M, BLOCK_N, PRECISION, False,
        )  # fmt: skip
        first += BLOCK_M
        last = first == rest
        step = tl.where(last, row_len - back, BLOCK_M)
        lse_tile += step
        delta_tile += step
        if not TMA:
            q_tile += tl.where(last, q_h - back * q_s, tl.cast(q_s, tl.int64) * BLOCK_M)
            dout_tile += tl.where(last, dout_h - back * dout_s, tl.cast(dout_s, tl.int64) * BLOCK_M)
        head = tl.where(last, head + 1, head)
        first = tl.where(last, edge, first)
    of_keys *= softmax_scale
    store_rows(dk, dk_b, dk_s, dk_h, batch, kv_head, first_key, kv_seq_len, of_keys, BLOCK_N, HEAD_DIM, BLOCK_D)
    store_rows(dv, dv_b, dv_s, dv_h, batch, kv_head, first_key, kv_seq_len, of_values, BLOCK_N, HEAD_DIM, BLOCK_D)
