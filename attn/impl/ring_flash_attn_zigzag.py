"""Zigzag ring attention of the package ring-flash-attn, on FlashAttention-2's kernels; causal only, over NCCL.

Source: github.com/zhuzilin/ring-flash-attention, ring_flash_attn.zigzag_ring_flash_attn_func of ring-flash-attn 0.1.8,
MIT; it needs the package flash-attn. Not in requirements. It sends for itself: what it sends is not counted.
"""

from torch import Tensor

from attn.contract import Mask, Unsupported
from attn.impl import _package
from attn.ring.communicator import Communicator

KIND = "ring"
DEVICES = ("cuda",)
DTYPES = ("bfloat16", "float16")
MASKS = ("causal",)
BACKWARD = True
LAYOUT = "zigzag"
DETERMINISTIC = False  # the backward of its kernels adds up in any order

_HEAD_DIMS = range(8, 257, 8)  # it calls the kernels below flash_attn_func, which pads


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator) -> Tensor:
    """Local shards in (batch, local_seq_len, heads, head_dim), local out.

    Raises:
        Unsupported: no such package, one rank, tokens that do not fill two chunks a rank, head_dim beyond 256 or
            no multiple of 8, softmax_scale 0.
    """
    with _package.wanted("pip install ring-flash-attn flash-attn"):
        from ring_flash_attn import zigzag_ring_flash_attn_func

    if comm.world_size == 1:
        raise Unsupported("1 rank: ring-flash-attn sends to a neighbour in a process group, which one rank has not")
    if comm.seq_len % (2 * comm.world_size):
        raise Unsupported(f"{comm.seq_len} tokens on {comm.world_size} ranks: it takes multiples of 2 x ranks")
    _package.refuse_scale(softmax_scale, mask, "FlashAttention-2")
    _package.refuse_head_dim(q, _HEAD_DIMS, "ring-flash-attn")
    one = _package.side_by_side(q, k, v)
    return zigzag_ring_flash_attn_func(*one, softmax_scale=softmax_scale, causal=True)  # type: ignore[no-any-return]
