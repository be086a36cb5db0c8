"""delta = rowsum(dout * out) in Triton: of the gradients of flash attention, what dq and dk share.

Source: Dao 2023 (arXiv 2307.08691), algorithm 2, line 4.
"""

import triton
import triton.language as tl

from attn.kernels.flash.tiles import load_rows


@triton.jit
def delta_kernel(
    out,
    dout,
    delta,
    out_b,
    out_s,
    out_h,
    dout_b,
    dout_s,
    dout_h,
    seq_len,
    n_heads,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """rowsum(dout * out) of BLOCK_M queries of one head, float32 (batch, n_heads, seq_len)."""
    blocks = tl.cdiv(seq_len, BLOCK_M)
    first = tl.program_id(0) % blocks * BLOCK_M
    batch_head = tl.program_id(0) // blocks
    batch, head = batch_head // n_heads, batch_head % n_heads
    # [BLOCK_M, BLOCK_D]
    given = load_rows(out, out_b, out_s, out_h, batch, head, first, seq_len, BLOCK_M, HEAD_DIM, BLOCK_D, True, False)
    into = load_rows(
        dout, dout_b, dout_s, dout_h, batch, head, first, seq_len, BLOCK_M, HEAD_DIM, BLOCK_D, True, False
    )  # fmt: skip
    rows = first + tl.arange(0, BLOCK_M)
    sums = tl.sum(given.to(tl.float32) * into.to(tl.float32), 1)
    tl.store(delta + tl.cast(batch_head, tl.int64) * seq_len + rows, sums, mask=rows < seq_len)
