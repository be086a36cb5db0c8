"""Flash attention forward in Triton: tiles of queries against all keys that they see, online softmax in base 2.

Phases of a program (BLOCK_M queries of one head):
    1. its queries are loaded once
    2. blocks of keys that all of them see: no mask, no bounds
    3. blocks through which the diagonal or the last key runs: masked. Blocks above the diagonal are never loaded.
    4. out = acc / l,  lse = (m + log2 l) ln 2
Source: Dao 2023 (arXiv 2307.08691), algorithm 1; online softmax of Milakov and Gimelshein 2018 (arXiv 1805.02867).
"""

import triton
import triton.language as tl

from attn.kernels.flash.tiles import LN_2, load_rows, load_tile, store_rows, tile_of


@triton.jit
def over_keys(
    acc,
    l,
    m,
    q,
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
    SPECIALIZE: tl.constexpr,
):
    """Online softmax over keys start to end, in float32. `seen` [BLOCK_M]: how many keys a query sees from key 0 on.

    m [BLOCK_M]: largest logit so far, in base 2;  l: sum of 2 ** (logit - m);  acc [BLOCK_M, BLOCK_D]: the same, of v.
    """
    # [BLOCK_N, BLOCK_D]
    k_tile = tile_of(k, k_b, k_s, k_h, batch, kv_head, start, BLOCK_N, BLOCK_D, TMA)
    v_tile = tile_of(v, v_b, v_s, v_h, batch, kv_head, start, BLOCK_N, BLOCK_D, TMA)
    for n in tl.range(start, end, BLOCK_N, warp_specialize=SPECIALIZE):
        keys = load_tile(k_tile, batch, kv_head, n, kv_seq_len, BLOCK_N, HEAD_DIM, BLOCK_D, MASKED, TMA)
        # [BLOCK_M, BLOCK_N]
        logits = tl.dot(q, keys.T, input_precision=PRECISION)
        if MASKED:
            logits = tl.where((n + tl.arange(0, BLOCK_N))[None, :] < seen[:, None], logits * scale, float("-inf"))
            new_m = tl.maximum(m, tl.max(logits, 1))
            finite_m = tl.where(new_m == float("-inf"), 0.0, new_m)  # a row that has seen no key yet
            weights = tl.exp2(logits - finite_m[:, None])
        else:
            new_m = tl.maximum(m, tl.max(logits, 1) * scale)
            finite_m = new_m
            weights = tl.exp2(logits * scale - new_m[:, None])
        shrink = tl.exp2(m - finite_m)
        l = l * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        values = load_tile(v_tile, batch, kv_head, n, kv_seq_len, BLOCK_N, HEAD_DIM, BLOCK_D, MASKED, TMA)
        acc = tl.dot(weights.to(values.dtype), values, acc, input_precision=PRECISION)
        m = new_m
        if not TMA:
            k_tile += tl.cast(k_s, tl.int64) * BLOCK_N
            v_tile += tl.cast(v_s, tl.int64) * BLOCK_N
    return acc, l, m


@triton.jit
def forward_kernel(
    q,
    k,
    v,
    out,
    lse,
    q_b,
    q_s,
    q_h,
    k_b,
    k_s,
    k_h,
    v_b,
    v_s,
    v_h,
    out_b,
    out_s,
    out_h,
    scale,  # softmax_scale * log2(e), at least 0
    seq_len,
    kv_seq_len,
    shift,  # query i sees keys 0 to i + shift; with EVERYTHING, all of them
    n_heads,
    group,  # query heads to one of k and v
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    TMA: tl.constexpr,
    SPECIALIZE: tl.constexpr,
):
    """One program a tile of BLOCK_M queries of one head; q, k, v, out as in `attn.contract`, lse contiguous."""
    blocks = tl.cdiv(seq_len, BLOCK_M)
    block = blocks - 1 - tl.program_id(0) % blocks  # those that see most begin first
    batch_head = tl.program_id(0) // blocks
    batch, head = batch_head // n_heads, batch_head % n_heads
    kv_head = head // group
    first = block * BLOCK_M
    rows = first + tl.arange(0, BLOCK_M)
    # [BLOCK_M, BLOCK_D]
    queries = load_rows(q, q_b, q_s, q_h, batch, head, first, seq_len, BLOCK_M, HEAD_DIM, BLOCK_D, True, TMA)

    seen = tl.minimum(rows + shift + 1, kv_seq_len)
    seen_by_all = tl.maximum(0, tl.minimum(first + shift + 1, kv_seq_len))
    end = tl.maximum(0, tl.minimum(first + BLOCK_M + shift, kv_seq_len))
    edge = seen_by_all // BLOCK_N * BLOCK_N

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    acc, l, m = over_keys(
        acc, l, m, queries, k, v, k_b, k_s, k_h, v_b, v_s, v_h, batch, kv_head, 0, edge, kv_seq_len, seen, scale,
        HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION, False, TMA, SPECIALIZE,
    )  # fmt: skip
    acc, l, m = over_keys(
        acc, l, m, queries, k, v, k_b, k_s, k_h, v_b, v_s, v_h, batch, kv_head, edge, end, kv_seq_len, seen, scale,
        HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION, True, TMA, SPECIALIZE,
    )  # fmt: skip

    nothing = l == 0.0
    total = tl.where(nothing, 1.0, l)
    store_rows(
        out, out_b, out_s, out_h, batch, head, first, seq_len, acc / total[:, None], BLOCK_M, HEAD_DIM, BLOCK_D
    )  # fmt: skip
    of_rows = tl.where(nothing, float("-inf"), (m + tl.log2(total)) * LN_2)
    tl.store(lse + tl.cast(batch_head, tl.int64) * seq_len + rows, of_rows, mask=rows < seq_len)
