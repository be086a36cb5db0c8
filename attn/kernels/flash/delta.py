"""Of the gradients of flash attention what dq and dk share, in Triton: delta = rowsum(dout * out), and lse in base 2.

Both are written so that the loops that read them, many times each, need neither a mask nor a product nor a case: a row
that sees no key, and one past the end, has lse inf, so that its weights are 0.

Source: Dao 2023 (arXiv 2307.08691), algorithm 2, line 4.
"""

import triton
import triton.language as tl

from attn.kernels.flash.tiles import LOG2_E, load_rows


@triton.jit
def delta_kernel(
    out,
    dout,
    lse,
    delta,
    lse_2,
    out_b,
    out_s,
    out_h,
    dout_b,
    dout_s,
    dout_h,
    seq_len,
    row_len,
    n_heads,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """BLOCK_M rows of one head; lse (batch, n_heads, seq_len), delta and lse_2 (batch, n_heads, row_len), float32."""
    blocks = row_len // BLOCK_M
    first = tl.program_id(0) % blocks * BLOCK_M
    batch_head = tl.program_id(0) // blocks
    batch, head = batch_head // n_heads, batch_head % n_heads
    # [BLOCK_M, BLOCK_D]
    given = load_rows(out, out_b, out_s, out_h, batch, head, first, seq_len, BLOCK_M, HEAD_DIM, BLOCK_D, True, False)
    into = load_rows(
        dout, dout_b, dout_s, dout_h, batch, head, first, seq_len, BLOCK_M, HEAD_DIM, BLOCK_D, True, False
    )  # fmt: skip
    rows = first + tl.arange(0, BLOCK_M)
    inside = rows < seq_len
    of_rows = tl.load(lse + tl.cast(batch_head, tl.int64) * seq_len + rows, mask=inside, other=float("-inf"))
    at = tl.cast(batch_head, tl.int64) * row_len + rows
    tl.store(delta + at, tl.sum(given.to(tl.float32) * into.to(tl.float32), 1))
    tl.store(lse_2 + at, tl.where(of_rows == float("-inf"), float("inf"), of_rows * LOG2_E))
