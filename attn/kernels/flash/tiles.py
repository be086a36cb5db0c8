"""Rows of one head between memory and registers, by tensor descriptor (TMA) or by pointers: one source for both."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def tile_of(
    x, stride_b, stride_s, stride_h, batch, head, start, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, TMA: tl.constexpr
):
    """Rows start to start + BLOCK of a head: pointers [BLOCK, BLOCK_D]; with TMA the descriptor x as it is.

    Loops carry it and add `BLOCK * stride_s` to pointers, which costs less than to compute them anew.
    """
    if TMA:
        tile = x
    else:
        of_head = x + tl.cast(batch, tl.int64) * stride_b + tl.cast(head, tl.int64) * stride_h
        first = of_head + tl.cast(start, tl.int64) * stride_s
        tile = first + (tl.arange(0, BLOCK)[:, None] * stride_s + tl.arange(0, BLOCK_D)[None, :])
    return tile


@triton.jit
def load_tile(
    tile,  # of `tile_of`
    batch,
    head,
    start,
    limit,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EDGE: tl.constexpr,
    TMA: tl.constexpr,
):
    """Rows start to start + BLOCK of a head -> [BLOCK, BLOCK_D]; what lies outside is 0.

    EDGE: rows from `limit` on are outside (without it, the caller knows that none is).
    """
    if TMA:
        values = tile.load([batch, start, head, 0]).reshape(BLOCK, BLOCK_D)
    else:
        rows = start + tl.arange(0, BLOCK)
        columns = tl.arange(0, BLOCK_D)
        if EDGE and HEAD_DIM < BLOCK_D:
            values = tl.load(tile, mask=(rows < limit)[:, None] & (columns < HEAD_DIM)[None, :], other=0.0)
        elif EDGE:
            values = tl.load(tile, mask=(rows < limit)[:, None], other=0.0)
        elif HEAD_DIM < BLOCK_D:
            values = tl.load(tile, mask=(columns < HEAD_DIM)[None, :], other=0.0)
        else:
            values = tl.load(tile)
    return values


@triton.jit
def load_rows(
    x,  # TMA: a descriptor of (batch, seq_len, heads, head_dim) in tiles of (1, BLOCK, 1, BLOCK_D); else a pointer
    stride_b,
    stride_s,
    stride_h,
    batch,
    head,
    start,
    limit,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EDGE: tl.constexpr,
    TMA: tl.constexpr,
):
    """`load_tile` of one tile."""
    tile = tile_of(x, stride_b, stride_s, stride_h, batch, head, start, BLOCK, BLOCK_D, TMA)
    return load_tile(tile, batch, head, start, limit, BLOCK, HEAD_DIM, BLOCK_D, EDGE, TMA)


@triton.jit
def store_rows(
    x,
    stride_b,
    stride_s,
    stride_h,
    batch,
    head,
    start,
    limit,
    values,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """[BLOCK, BLOCK_D] -> rows start to min(start + BLOCK, limit) of a head, in the dtype of the pointer."""
    rows = tl.arange(0, BLOCK)
    columns = tl.arange(0, BLOCK_D)
    first = (
        x
        + tl.cast(batch, tl.int64) * stride_b
        + tl.cast(head, tl.int64) * stride_h
        + tl.cast(start, tl.int64) * stride_s
    )
    inside = (start + rows < limit)[:, None] & (columns < HEAD_DIM)[None, :]
    tile = first + rows[:, None] * stride_s + columns[None, :]
    tl.store(tile, values.to(x.dtype.element_ty), mask=inside)
