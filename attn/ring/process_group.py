"""gloo and NCCL, through torch.distributed. Both make progress by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from attn.ring.transport import Groups, Transport


@dataclass(frozen=True)
class _Rotation:
    works: list[Any]
    sent: Tensor  # held until it is gone
    received: Tensor

    def wait(self) -> Tensor:
        """What the previous rank has sent."""
        for work in self.works:
            work.wait()
        return self.received


class ProcessGroup:
    """A group of torch.distributed; every result is memory of its own. See `attn.ring.transport.Transport`."""

    def __init__(self, name: str, world: Any, node_of_rank: Sequence[int], timeout_s: float, group: Any = None) -> None:
        self.name, self.rank, self.world_size = name, world.rank, world.size
        self._world, self._nodes, self._timeout_s, self._group = world, tuple(node_of_rank), timeout_s, group
        self._splits: dict[Groups, Transport] = {}

    def begin(self) -> None:
        """Nothing is used again here, but it may be in a group inside a node."""
        for one in self._splits.values():
            one.begin()

    def message(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """New memory."""
        return like.new_empty(tuple(shape))

    def keep(self, x: Tensor) -> Tensor:
        """Itself, unless it is of a group inside a node."""
        for one in self._splits.values():
            x = one.keep(x)
        return x

    def rotate(self, x: Tensor) -> _Rotation:
        """Both directions at once, in one batch, which NCCL needs so as not to wait for itself."""
        sent, received = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        to, source = ((self.rank + step) % self.world_size for step in (1, -1))
        ops = [
            dist.P2POp(dist.isend, sent, group=self._group, group_peer=to),
            dist.P2POp(dist.irecv, received, group=self._group, group_peer=source),
        ]
        return _Rotation(dist.batch_isend_irecv(ops), sent, received)

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        """In one piece."""
        gathered = x.new_empty(self.world_size, *x.shape)
        dist.all_gather(list(gathered), x.contiguous(), group=self._group)
        return torch.cat(list(gathered), dim)

    def reduce_scatter(self, x: Tensor, dim: int) -> Tensor:
        """An all-to-all and a sum here, in the order of ranks: gloo has no reduce-scatter of its own."""
        return self._exchanged(x, dim).sum(0)

    def all_to_all(self, x: Tensor, split_dim: int, cat_dim: int) -> Tensor:
        """In one piece."""
        return torch.cat(list(self._exchanged(x, split_dim)), cat_dim)

    def all_reduce(self, x: Tensor, op: Literal["sum", "max"]) -> Tensor:
        """Into a copy."""
        reduced = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(reduced, dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX, group=self._group)
        return reduced

    def split(self, groups: Groups) -> Transport:
        """Inside a node, on the CPU, shared memory; else a group of the same kind."""
        if groups not in self._splits:
            self._splits[groups] = self._made(groups)
        return self._splits[groups]

    def memory_bytes(self) -> int:
        """Of groups inside a node; all else is torch's own."""
        return sum(one.memory_bytes() for one in self._splits.values())

    def close(self) -> None:
        """Groups; the process group itself belongs to who made it."""
        for one in self._splits.values():
            one.close()
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def _made(self, groups: Groups) -> Transport:
        color = next(i for i, group in enumerate(groups) if self.rank in group)
        world, nodes = self._world.Split(color, self.rank), [self._nodes[rank] for rank in groups[color]]
        inside = all(len({self._nodes[rank] for rank in group}) == 1 for group in groups)
        if inside and self.name == "gloo":
            from attn.ring.windows import Windows

            return Windows(world, self._timeout_s)
        made = [dist.new_group(list(group), timeout=timedelta(seconds=self._timeout_s)) for group in groups]
        return ProcessGroup(self.name, world, nodes, self._timeout_s, made[color])

    def _exchanged(self, x: Tensor, dim: int) -> Tensor:
        """(world_size, ...): the parts along `dim` that the others have sent."""
        parts = torch.stack(x.chunk(self.world_size, dim))
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=self._group)
        return received
