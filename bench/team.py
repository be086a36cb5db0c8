"""Who computes a cell: one process alone, or the ranks of an mpiexec launch.

Both answer the same questions, so that `bench.measure` is written once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from attn.ring.transport import PROCESS_GROUPS, Transport, connect, resolve
from bench import wire


class Team(Protocol):
    """rank and world_size; decisions of rank 0; gathering on rank 0; lining up before a sample."""

    rank: int
    world_size: int
    transport: Transport | None
    node_of_rank: Sequence[int]
    ulysses_size: int

    def agree(self, value: float) -> float:
        """Rank 0's value, on every rank."""

    def gather(self, values: list[float]) -> list[list[float]]:
        """On rank 0 the values of every rank (equally many each); elsewhere nothing."""

    def gather_tensor(self, x: Tensor) -> list[Tensor]:
        """On rank 0 the tensor of every rank (of one shape); elsewhere nothing."""

    def line_up(self) -> None:
        """Return on all ranks at about the same time; who waits long does so without burning a core."""

    def wire_bytes(self) -> int:
        """Bytes that have been sent over the network so far, the same on every rank."""


class Solo:
    """One process."""

    rank, world_size = 0, 1
    transport: Transport | None = None
    node_of_rank: Sequence[int] = (0,)
    ulysses_size = 0

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

    def wire_bytes(self) -> int:
        """Nothing is sent."""
        return 0


class Ranks:
    """The ranks of COMM_WORLD: mpi4py for the set-up and the harness, torch.distributed for the schedule.

    They are numbered by node, so that a ring crosses the network once a node, however mpiexec has placed them.

    world: the MPI communicator in the order of the ring. node_of_rank, hosts: of each rank its node's number, counted
    in the order of the ring, and its host's name. interface: what carries bytes between nodes; the loopback where
    there is one node. threads: cores of this node / its ranks. transport: None where there is one rank. address: where
    other nodes reach this rank.

    Raises:
        RuntimeError: the world has another size than asked for.
        ValueError: no interface has that address, or the transport cannot serve this device or these nodes.
    """

    def __init__(
        self,
        world_size: int,
        device: str,
        timeout_s: float,
        *,
        address: str = "127.0.0.1",
        transport: str = "auto",
        ulysses_size: int = 0,
    ) -> None:
        from mpi4py import MPI

        self.ulysses_size = ulysses_size
        started = MPI.COMM_WORLD
        if started.size != world_size:
            raise RuntimeError(f"mpiexec started a world of {started.size} ranks, asked for {world_size}")
        self._node: Any = started.Split_type(MPI.COMM_TYPE_SHARED)
        leader = self._node.bcast(started.rank)
        self.world: Any = started.Split(0, leader * world_size + self._node.rank)
        self.rank: int = self.world.rank
        self.world_size: int = self.world.size
        leaders = self.world.allgather(leader)
        self.node_of_rank: tuple[int, ...] = tuple(sorted(set(leaders)).index(one) for one in leaders)
        self.hosts: tuple[str, ...] = tuple(self.world.allgather(wire.host_name()))
        self.threads = self._threads()
        self._address = address if self.nodes > 1 else "127.0.0.1"
        self.interface = wire.interface_of(self._address)
        self.transport: Transport | None = None
        if world_size > 1:
            name = resolve(transport, device, self.node_of_rank)
            if name in PROCESS_GROUPS:
                self._rendezvous(name, device, timeout_s)
            self.transport = connect(name, self.world, self.node_of_rank, timeout_s)

    @property
    def nodes(self) -> int:
        """How many there are."""
        return len(set(self.node_of_rank))

    def _threads(self) -> int:
        """What this node's ranks may use together, shared out; a scheduler may have given each cores of its own."""
        cores: list[set[int]] = self._node.allgather(os.sched_getaffinity(0))
        return max(1, len(set().union(*cores)) // len(cores))

    def _rendezvous(self, backend: str, device: str, timeout_s: float) -> None:
        """Rank 0 opens a store on a free port and tells the others where it is."""
        os.environ["GLOO_SOCKET_IFNAME"] = self.interface
        if self.nodes > 1:
            os.environ["NCCL_SOCKET_IFNAME"] = self.interface
        timeout = timedelta(seconds=timeout_s)
        mine = None
        if self.rank == 0:
            mine = TCPStore(self._address, 0, self.world_size, is_master=True, timeout=timeout, wait_for_workers=False)
        host, port = self.world.bcast((self._address, mine.port if mine else 0))
        store = mine or TCPStore(host, port, self.world_size, is_master=False, timeout=timeout)
        if device == "cuda":
            torch.cuda.set_device(self._node.rank)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world_size, timeout=timeout)

    def wire_bytes(self) -> int:
        """Bytes that the interfaces of all nodes have sent so far, the same on every rank; take it before and after.

        One reading a node. Between nodes the difference over a call includes headers and the few hundred bytes of
        lining up; on one node it is the loopback's, and what others on this machine send over it counts as well.
        """
        self.line_up()
        mine = wire.sent_bytes(self.interface) if self._node.rank == 0 else 0
        total = np.array([mine], dtype=np.int64)
        everyone = np.empty_like(total)
        _wait(self.world.Iallreduce(total, everyone))
        return int(everyone[0])

    def close(self) -> None:
        """Leave together, so that nobody's sockets vanish under the others."""
        self.line_up()
        if self.transport:
            self.transport.close()
        if dist.is_initialized():
            dist.destroy_process_group()
        self.world.Barrier()

    def agree(self, value: float) -> float:
        """Rank 0's value."""
        buffer = np.array([value], dtype=np.float64)
        _wait(self.world.Ibcast(buffer))
        return float(buffer[0])

    def gather(self, values: list[float]) -> list[list[float]]:
        """One list a rank, on rank 0."""
        mine = np.array(values, dtype=np.float64)
        everyone = np.empty((self.world_size, len(values))) if self.rank == 0 else None
        _wait(self.world.Igather(mine, everyone))
        return everyone.tolist() if everyone is not None else []

    def gather_tensor(self, x: Tensor) -> list[Tensor]:
        """One tensor a rank, on rank 0."""
        x = x.detach().cpu().contiguous()
        mine = x.view(torch.uint8).numpy()
        everyone = np.empty((self.world_size, *mine.shape), dtype=np.uint8) if self.rank == 0 else None
        _wait(self.world.Igather(mine, everyone))
        return [] if everyone is None else [torch.from_numpy(one.copy()).view(x.dtype) for one in everyone]

    def line_up(self) -> None:
        """Sleep first, then spin: to return at the same time."""
        _wait(self.world.Ibarrier())
        self.world.Barrier()


def _wait(request: Any) -> None:
    """MPI waits by spinning, which would slow down a rank that still computes: sleep between looks."""
    while not request.Test():
        time.sleep(2e-4)
