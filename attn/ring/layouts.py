"""How tokens are dealt to ranks: every rank holds ceil(seq_len / world_size), padding at the end of what it holds.

    contiguous     rank r holds tokens r * local_seq_len onwards
    zigzag         rank r holds chunks r and 2 * world_size - 1 - r of 2 * world_size; the later half's are the
                   shorter ones where local_seq_len is odd
    striped        token i is held by rank i mod world_size
    replicated_q   k and v contiguous; every rank holds all queries

zigzag: Zhu 2023 (github.com/zhuzilin/ring-flash-attention) and Llama 3 (arXiv 2407.21783). striped: Brandon et al. 2023
(arXiv 2311.09431).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attn.contract import Mask


@dataclass(frozen=True)
class Seen:
    """Which of a rank's queries see which keys of a shard. `causal`: query i of these sees keys 0 to i of these."""

    queries: slice
    keys: slice
    causal: bool


def local_seq_len(seq_len: int, world_size: int) -> int:
    """Tokens that a rank holds, padding included."""
    return -(-seq_len // world_size)


def lengths(seq_len: int, layout: str, world_size: int, local: int | None = None) -> tuple[int, ...]:
    """Of each rank, how many tokens are not padding, where it holds `local` (None: `local_seq_len`); maybe none."""
    local = local_seq_len(seq_len, world_size) if local is None else local
    return tuple(sum(map(len, _held(seq_len, layout, rank, world_size, local))) for rank in range(world_size))


def seen(mask: Mask, layout: str, lengths: Sequence[int], local: int, rank: int, source: int) -> Seen | None:
    """What the queries of `rank` see of the shard of `source`; None where that is nothing. `lengths`: of each rank."""
    mine, theirs, causal = lengths[rank], lengths[source], mask.kind == "causal"
    first, front = 0, -(-local // 2)
    if causal and layout == "contiguous" and source > rank:
        return None
    if causal and layout == "zigzag":
        first = front if source > rank else 0
        theirs = min(front, theirs) if source < rank else theirs
    if causal and layout == "striped":  # of sources after it, query i sees keys 0 to i - 1
        first = int(source > rank)
        theirs = min(theirs, mine - first)
    if mine <= first or not theirs:
        return None
    return Seen(slice(first, mine), slice(0, theirs), causal and (source == rank or layout == "striped"))


def tokens(seq_len: int, layout: str, rank: int, world_size: int) -> Tensor:
    """Positions in the whole sequence of what a rank holds, padding left out; 1-d, in its order."""
    if layout == "replicated_q":
        return torch.arange(seq_len)
    held = _held(seq_len, layout, rank, world_size, local_seq_len(seq_len, world_size))
    return torch.tensor([position for part in held for position in part], dtype=torch.int64)


def of_tensor(layout: str, name: str) -> str:
    """How the tensor of this name (q, k, v or dout) is dealt."""
    return "contiguous" if layout == "replicated_q" and name in "kv" else layout


def shard(x: Tensor, layout: str, rank: int, world_size: int) -> Tensor:
    """The tokens (dimension 1) of a rank, padded with zeros to `local_seq_len`; a copy of its own."""
    held = tokens(x.shape[1], layout, rank, world_size)
    local = len(held) if layout == "replicated_q" else local_seq_len(x.shape[1], world_size)
    padded = torch.zeros(x.shape[0], local, *x.shape[2:], dtype=x.dtype, device=x.device)
    padded[:, : len(held)] = x[:, held]
    return padded


def padded(x: Tensor, local: int) -> Tensor:
    """With zeros behind its tokens (dimension 1); itself where it has that many."""
    return x if x.shape[1] == local else torch.nn.functional.pad(x, (0, 0, 0, 0, 0, local - x.shape[1]))


def unshard(shards: list[Tensor], layout: str, seq_len: int) -> Tensor:
    """The whole again, from the shards of all ranks in their order; NaN where copies of it differ."""
    if layout == "replicated_q":
        same = [(one == shards[0]) | (one.isnan() & shards[0].isnan()) for one in shards]
        return torch.where(torch.stack(same).all(0), shards[0], torch.nan)
    whole = shards[0].new_empty(shards[0].shape[0], seq_len, *shards[0].shape[2:])
    for rank, one in enumerate(shards):
        held = tokens(seq_len, layout, rank, len(shards))
        whole[:, held] = one[:, : len(held)]
    return whole


def _held(seq_len: int, layout: str, rank: int, world_size: int, local: int) -> list[range]:
    if layout == "striped":
        return [range(rank, seq_len, world_size)]
    if layout == "zigzag":
        front = -(-local // 2)
        back = local - front
        later = world_size * front + (world_size - 1 - rank) * back
        return [_within(rank * front, front, seq_len), _within(later, back, seq_len)]
    return [_within(rank * local, local, seq_len)]


def _within(first: int, count: int, seq_len: int) -> range:
    return range(first, max(first, min(first + count, seq_len)))
