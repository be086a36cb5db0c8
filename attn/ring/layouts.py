"""How tokens are dealt to ranks: every rank holds ceil(seq_len / world_size), padding at the end.

`contiguous`: rank r holds tokens r * local_seq_len onwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attn.contract import Unsupported


def local_seq_len(seq_len: int, world_size: int) -> int:
    """Tokens that a rank holds, padding included."""
    return -(-seq_len // world_size)


def lengths(seq_len: int, world_size: int) -> tuple[int, ...]:
    """Tokens of each rank of a contiguous layout that are not padding; the last ranks may hold none."""
    local = local_seq_len(seq_len, world_size)
    return tuple(max(0, min(local, seq_len - rank * local)) for rank in range(world_size))


def tokens(seq_len: int, layout: str, rank: int, world_size: int) -> Tensor:
    """Positions in the whole sequence of what a rank holds, padding left out; 1-d, in its order.

    Raises:
        Unsupported: a layout that is not there.
    """
    if layout != "contiguous":
        raise Unsupported(f"layout {layout}: only contiguous is there")
    local = local_seq_len(seq_len, world_size)
    return torch.arange(rank * local, max(rank * local, min(seq_len, (rank + 1) * local)))


def shard(x: Tensor, layout: str, rank: int, world_size: int) -> Tensor:
    """The tokens (dimension 1) of a rank, padded with zeros to `local_seq_len`; a copy of its own."""
    held = tokens(x.shape[1], layout, rank, world_size)
    local = local_seq_len(x.shape[1], world_size)
    padded = torch.zeros(x.shape[0], local, *x.shape[2:], dtype=x.dtype, device=x.device)
    padded[:, : len(held)] = x[:, held]
    return padded


def unshard(shards: list[Tensor], layout: str, seq_len: int) -> Tensor:
    """The whole again, from the shards of all ranks in their order."""
    whole = shards[0].new_empty(shards[0].shape[0], seq_len, *shards[0].shape[2:])
    for rank, one in enumerate(shards):
        held = tokens(seq_len, layout, rank, len(shards))
        whole[:, held] = one[:, : len(held)]
    return whole
