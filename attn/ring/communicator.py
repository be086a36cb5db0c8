"""The communicator that a ring schedule is given: who I am, collectives, and a count of what was sent.

`payload_bytes` is what the schedule hands over to be sent to others, counted here and not modelled:
(world_size - 1) x the local message for an all-gather, the shards of the others for a reduce-scatter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Communicator:
    """One rank's view of the ring. With world_size 1 nothing is sent and no process group is needed.

    `seq_len` is the length of the whole sequence, which tells padding from tokens.
    """

    rank: int
    world_size: int
    seq_len: int
    payload_bytes: int = 0
    messages: int = 0

    def all_gather(self, x: Tensor) -> Tensor:
        """(world_size, *x.shape): the x of every rank, in the order of ranks."""
        if self.world_size == 1:
            return x[None]
        gathered = x.new_empty(self.world_size, *x.shape)
        dist.all_gather(list(gathered), x.contiguous())
        self._count(x)
        return gathered

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """The sum over ranks of x[rank]; x is (world_size, ...), the result (...)."""
        if self.world_size == 1:
            return x[0]
        received = torch.empty_like(x)
        dist.all_to_all_single(received, x.contiguous())
        self._count(x[0])
        return received.sum(0)

    def _count(self, message: Tensor) -> None:
        self.payload_bytes += (self.world_size - 1) * message.nbytes
        self.messages += self.world_size - 1
