"""All-to-all between two ways to share attention out: each rank some tokens of all heads, or all tokens of some heads.

Source: DeepSpeed Ulysses (Jacobs et al. 2023, arXiv 2309.14509).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attn.contract import Unsupported
from attn.ring.communicator import Communicator


def kv_repeats(n_heads: int, n_kv_heads: int, ranks: int) -> int:
    """How often each head of k and v is there, so that `ranks` ranks share them out evenly.

    Raises:
        Unsupported: the heads of q cannot be shared out evenly.
    """
    if n_heads % ranks:
        raise Unsupported(f"{n_heads} heads cannot be shared out evenly to {ranks} ranks")
    return math.lcm(n_kv_heads, ranks) // n_kv_heads


def repeated(x: Tensor, repeats: int) -> Tensor:
    """Every head (dimension 2) so often, copies side by side."""
    return x.repeat_interleave(repeats, dim=2) if repeats > 1 else x


def summed(dx: Tensor, repeats: int) -> Tensor:
    """The gradient of what `repeated` was given."""
    return torch.unflatten(dx, 2, (-1, repeats)).sum(3) if repeats > 1 else dx


def to_heads(comm: Communicator, *tensors: Tensor) -> list[Tensor]:
    """(b, local, heads, d) each -> (b, world_size * local, heads / world_size, d), in one message."""
    packed = torch.cat([torch.unflatten(x, 2, (comm.world_size, -1)) for x in tensors], dim=3)
    received = comm.all_to_all(packed, split_dim=2, cat_dim=1)[:, :, 0]
    return list(torch.split(received, [x.shape[2] // comm.world_size for x in tensors], dim=2))


def to_tokens(comm: Communicator, *tensors: Tensor) -> list[Tensor]:
    """The way back, into memory of their own."""
    packed = torch.cat(tensors, dim=2).unsqueeze(2)
    received = comm.all_to_all(packed, split_dim=1, cat_dim=2)
    return [comm.keep(x.flatten(2, 3)) for x in torch.split(received, [x.shape[2] for x in tensors], dim=3)]
