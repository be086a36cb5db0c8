"""Who computes a cell: one process alone, or the ranks of an mpiexec launch.

Both answer the same questions, so that `bench.measure` is written once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from attn.ring.transport import Transport, connect, resolve


class Team(Protocol):
    """rank and world_size; decisions of rank 0; gathering on rank 0; lining up before a sample."""

    rank: int
    world_size: int
    transport: Transport | None
    node_of_rank: Sequence[int]

    def agree(self, value: float) -> float:
        """Rank 0's value, on every rank."""

    def gather(self, values: list[float]) -> list[list[float]]:
        """On rank 0 the values of every rank (equally many each); elsewhere nothing."""

    def gather_tensor(self, x: Tensor) -> list[Tensor]:
        """On rank 0 the tensor of every rank (of one shape); elsewhere nothing."""

    def line_up(self) -> None:
        """Return on all ranks at about the same time; who waits long does so without burning a core."""


class Solo:
    """One process."""

    rank, world_size = 0, 1
    transport: Transport | None = None
    node_of_rank: Sequence[int] = (0,)

    def agree(self, value: float) -> float:
        """The value."""
        return value

    def gather(self, values: list[float]) -> list[list[float]]:
        """The values."""
        return [values]

    def gather_tensor(self, x: Tensor) -> list[Tensor]:
        """The tensor."""
        return [x]

    def line_up(self) -> None:
        """Nothing to wait for."""


class Ranks:
    """The ranks of COMM_WORLD: mpi4py for the set-up and the harness, torch.distributed for the schedule.

    Raises:
        RuntimeError: the world has another size than asked for.
    """

    def __init__(self, world_size: int, device: str, timeout_s: float) -> None:
        from mpi4py import MPI

        self._mpi: Any = MPI
        self._world = MPI.COMM_WORLD
        self.rank, self.world_size = self._world.rank, self._world.size
        if self.world_size != world_size:
            raise RuntimeError(f"mpiexec started a world of {self.world_size} ranks, asked for {world_size}")
        self.transport: Transport | None = None
        self.node_of_rank: Sequence[int] = [0] * world_size
        if world_size > 1:
            self._rendezvous(device, timeout_s)
            name = resolve("auto", device, self.node_of_rank)
            self.transport = connect(name, self._world, self.node_of_rank, timeout_s)

    def _rendezvous(self, device: str, timeout_s: float) -> None:
        """Rank 0 opens a store on a free port and tells the others where it is."""
        from datetime import timedelta

        node = self._world.Split_type(self._mpi.COMM_TYPE_SHARED)
        one_node = node.size == self.world_size
        if one_node:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        host = "127.0.0.1" if one_node else self._mpi.Get_processor_name()
        timeout = timedelta(seconds=timeout_s)
        mine = None
        if self.rank == 0:
            mine = TCPStore(host, 0, self.world_size, is_master=True, timeout=timeout, wait_for_workers=False)
        host, port = self._world.bcast((host, mine.port if mine else 0))
        store = mine or TCPStore(host, port, self.world_size, is_master=False, timeout=timeout)
        if device == "cuda":
            torch.cuda.set_device(node.rank)
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world_size, timeout=timeout)

    def close(self) -> None:
        """Leave together, so that nobody's sockets vanish under the others."""
        self.line_up()
        if self.transport:
            self.transport.close()
        if dist.is_initialized():
            dist.destroy_process_group()
        self._world.Barrier()

    def agree(self, value: float) -> float:
        """Rank 0's value."""
        buffer = np.array([value], dtype=np.float64)
        _wait(self._world.Ibcast(buffer))
        return float(buffer[0])

    def gather(self, values: list[float]) -> list[list[float]]:
        """One list a rank, on rank 0."""
        mine = np.array(values, dtype=np.float64)
        everyone = np.empty((self.world_size, len(values))) if self.rank == 0 else None
        _wait(self._world.Igather(mine, everyone))
        return everyone.tolist() if everyone is not None else []

    def gather_tensor(self, x: Tensor) -> list[Tensor]:
        """One tensor a rank, on rank 0."""
        x = x.detach().cpu().contiguous()
        mine = x.view(torch.uint8).numpy()
        everyone = np.empty((self.world_size, *mine.shape), dtype=np.uint8) if self.rank == 0 else None
        _wait(self._world.Igather(mine, everyone))
        return [] if everyone is None else [torch.from_numpy(one.copy()).view(x.dtype) for one in everyone]

    def line_up(self) -> None:
        """Sleep first, then spin: to return at the same time."""
        _wait(self._world.Ibarrier())
        self._world.Barrier()


def _wait(request: Any) -> None:
    """MPI waits by spinning, which would slow down a rank that still computes: sleep between looks."""
    while not request.Test():
        time.sleep(2e-4)
