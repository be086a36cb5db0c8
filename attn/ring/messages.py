"""MPI messages. MPI makes progress only while somebody calls it, so a thread of ours does, while rows compute."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from attn.ring.transport import Groups, Transport

_LOOK_S = 5e-5


class _Progress:
    """Tests requests until they are complete. One thread a process, asleep while there is none."""

    def __init__(self, mpi: Any) -> None:
        self._mpi, self._requests, self._wake = mpi, list[Any](), threading.Condition()
        threading.Thread(target=self._run, name="mpi-progress", daemon=True).start()

    def watch(self, requests: list[Any]) -> threading.Event:
        """Set when all of them are complete."""
        done = threading.Event()
        with self._wake:
            self._requests.append((requests, done))
            self._wake.notify()
        return done

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: bool(self._requests))
                waiting = list(self._requests)
            complete = [one for one in waiting if self._mpi.Request.Testall(one[0])]
            for _, done in complete:
                done.set()
            with self._wake:
                self._requests = [one for one in self._requests if one not in complete]
            time.sleep(_LOOK_S)


@dataclass(frozen=True)
class _Message:
    done: threading.Event
    timeout_s: float
    what: str
    received: Tensor
    sent: Any  # held until it is gone

    def wait(self) -> Tensor:
        """What was received.

        Raises:
            TimeoutError: it did not come in time.
        """
        if not self.done.wait(self.timeout_s):
            raise TimeoutError(f"{self.what}: nothing came within {self.timeout_s:g} s")
        return self.received


class Messages:
    """MPI point to point and collectives, of CPU memory. See `attn.ring.transport.Transport`.

    Raises:
        RuntimeError: this MPI does not let several threads call it.
    """

    name = "mpi"

    def __init__(
        self, world: Any, node_of_rank: Sequence[int], timeout_s: float, progress: _Progress | None = None
    ) -> None:
        from mpi4py import MPI

        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise RuntimeError("this MPI does not let several threads call it (MPI_THREAD_MULTIPLE)")
        self._mpi, self._world = MPI, world.Dup()
        self._nodes, self._timeout_s, self._progress = tuple(node_of_rank), timeout_s, progress or _Progress(MPI)
        self.rank, self.world_size = world.rank, world.size
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

    def rotate(self, x: Tensor) -> _Message:
        """Isend and Irecv."""
        sent, received = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        to, source = ((self.rank + step) % self.world_size for step in (1, -1))
        requests = [self._world.Irecv(_bytes(received), source), self._world.Isend(_bytes(sent), to)]
        return self._watched(requests, f"rank {self.rank} waiting for rank {source}", received, sent)

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        """Iallgather."""
        sent, gathered = x.contiguous(), x.new_empty(self.world_size, *x.shape)
        request = self._world.Iallgather(_bytes(sent), _bytes(gathered))
        self._watched([request], "all-gather", gathered, sent).wait()
        return torch.cat(list(gathered), dim)

    def reduce_scatter(self, x: Tensor, dim: int) -> Tensor:
        """An all-to-all and a sum here, in the order of ranks: MPI's own has no 16-bit floats."""
        return self._exchanged(x, dim).sum(0)

    def all_to_all(self, x: Tensor, split_dim: int, cat_dim: int) -> Tensor:
        """Ialltoall."""
        return torch.cat(list(self._exchanged(x, split_dim)), cat_dim)

    def all_reduce(self, x: Tensor, op: Literal["sum", "max"]) -> Tensor:
        """Parts are reduced where they arrive, in the order of ranks, and gathered: the same bits everywhere."""
        padded = torch.nn.functional.pad(x.flatten(), (0, -x.numel() % self.world_size))
        parts = self._exchanged(padded, 0)
        mine = parts.sum(0) if op == "sum" else parts.amax(0)
        return self.all_gather(mine, 0)[: x.numel()].view(x.shape)

    def split(self, groups: Groups) -> Transport:
        """Inside a node shared memory; else a group of the same kind."""
        if groups not in self._splits:
            color = next(i for i, group in enumerate(groups) if self.rank in group)
            world, nodes = self._world.Split(color, self.rank), [self._nodes[rank] for rank in groups[color]]
            if all(len({self._nodes[rank] for rank in group}) == 1 for group in groups):
                from attn.ring.windows import Windows

                self._splits[groups] = Windows(world, self._timeout_s)
            else:
                self._splits[groups] = Messages(world, nodes, self._timeout_s, self._progress)
        return self._splits[groups]

    def memory_bytes(self) -> int:
        """Of groups inside a node; all else is torch's own."""
        return sum(one.memory_bytes() for one in self._splits.values())

    def close(self) -> None:
        """Groups, and the copy of the world."""
        for one in self._splits.values():
            one.close()
        self._world.Free()

    def _exchanged(self, x: Tensor, dim: int) -> Tensor:
        """(world_size, ...): the parts along `dim` that the others have sent."""
        parts = torch.stack(x.chunk(self.world_size, dim))
        received = torch.empty_like(parts)
        request = self._world.Ialltoall(_bytes(parts), _bytes(received))
        return self._watched([request], "all-to-all", received, parts).wait()

    def _watched(self, requests: list[Any], what: str, received: Tensor, sent: Any) -> _Message:
        return _Message(self._progress.watch(requests), self._timeout_s, what, received, sent)


def _bytes(x: Tensor) -> Any:
    """As bytes, which MPI has a type for whatever torch calls them."""
    return x.detach().view(-1).view(torch.uint8).numpy()
