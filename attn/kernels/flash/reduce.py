"""Parts of a split-KV decode -> out and lse, in Triton: merged by their lse in the order of the keys, in float32."""

import triton
import triton.language as tl


@triton.jit
def reduce_kernel(
    part_out,
    part_lse,
    out,
    lse,
    out_b,
    out_s,
    out_h,
    seq_len,
    n_heads,
    rows,  # batch * n_heads * seq_len
    parts,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Parts of `decode_kernel` -> out and lse of BLOCK_M rows."""
    first = tl.cast(tl.program_id(0), tl.int64) * BLOCK_M
    below, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    row = first + below
    inside = row < rows
    tile = below[:, None] * HEAD_DIM + columns[None, :]
    mask = inside[:, None] & (columns < HEAD_DIM)[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for part in range(parts):
        at = tl.cast(part, tl.int64) * rows + first
        part_m = tl.load(part_lse + at + below, mask=inside, other=float("-inf"))
        values = tl.load(part_out + at * HEAD_DIM + tile, mask=mask, other=0.0)
        new_m = tl.maximum(m, part_m, propagate_nan=tl.PropagateNan.ALL)
        finite_m = tl.where(new_m == float("-inf"), 0.0, new_m)
        shrink, weight = tl.exp(m - finite_m), tl.exp(part_m - finite_m)
        l = l * shrink + weight
        acc = acc * shrink[:, None] + values * weight[:, None]
        m = new_m
    nothing = l == 0.0
    total = tl.where(nothing, 1.0, l)
    query, batch_head = row % seq_len, row // seq_len
    of_row = out + batch_head // n_heads * out_b + query * out_s + batch_head % n_heads * out_h
    tl.store(of_row[:, None] + columns[None, :], (acc / total[:, None]).to(out.dtype.element_ty), mask=mask)
    tl.store(lse + row, tl.where(nothing, float("-inf"), m + tl.log(total)), mask=inside)
