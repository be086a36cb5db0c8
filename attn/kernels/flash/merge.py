"""Partial results of attention over disjoint keys, merged by their lse in one Triton kernel, in place.

    out -= sigmoid(block_lse - lse) * (out - block_out);  lse -= logsigmoid(lse - block_lse)
The formulas are those of attn/ring/merge.py, with one pass over memory instead of one for every operation.
"""

import triton
import triton.language as tl

from attn.kernels.flash.tiles import load_rows, store_rows


@triton.jit
def merge_kernel(
    out,
    lse,
    block_out,
    block_lse,
    out_b,
    out_s,
    out_h,
    block_b,
    block_s,
    block_h,
    seq_len,
    n_heads,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """BLOCK_M queries of one head; out as in `attn.contract`, lse and block_lse contiguous, all but block_out float32.

    A row whose block is empty (block_lse -inf) is left as it is; a NaN stays one.
    """
    blocks = tl.cdiv(seq_len, BLOCK_M)
    first = tl.program_id(0) % blocks * BLOCK_M
    batch_head = tl.program_id(0) // blocks
    batch, head = batch_head // n_heads, batch_head % n_heads
    rows = first + tl.arange(0, BLOCK_M)
    at = tl.cast(batch_head, tl.int64) * seq_len + rows
    old = tl.load(lse + at, mask=rows < seq_len, other=0.0)
    new = tl.load(block_lse + at, mask=rows < seq_len, other=0.0)
    gap = tl.where(new == float("-inf"), float("-inf"), new - old)
    smaller = tl.exp(-tl.abs(gap))  # in (0, 1], so that nothing overflows
    share = tl.where(gap >= 0, 1.0 / (1.0 + smaller), smaller / (1.0 + smaller))
    # [BLOCK_M, BLOCK_D]
    before = load_rows(out, out_b, out_s, out_h, batch, head, first, seq_len, BLOCK_M, HEAD_DIM, BLOCK_D, True, False)
    block = load_rows(
        block_out, block_b, block_s, block_h, batch, head, first, seq_len, BLOCK_M, HEAD_DIM, BLOCK_D, True, False
    )  # fmt: skip
    after = before - share[:, None] * (before - block.to(tl.float32))
    store_rows(out, out_b, out_s, out_h, batch, head, first, seq_len, after, BLOCK_M, HEAD_DIM, BLOCK_D)
    more = tl.maximum(gap, 0.0, propagate_nan=tl.PropagateNan.ALL) + tl.log(1.0 + smaller)  # -logsigmoid(-gap)
    tl.store(lse + at, tl.where(old == float("-inf"), new, old + more), mask=rows < seq_len)
