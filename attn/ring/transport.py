"""How bytes get from rank to rank: what a transport offers, and which one serves where.

    nccl     torch.distributed on CUDA                              attn/ring/process_group.py
    gloo     torch.distributed over sockets                         attn/ring/process_group.py
    mpi      MPI messages, a thread of ours makes them progress     attn/ring/messages.py
    shm      memory that the ranks of a node share: nothing moves   attn/ring/windows.py

All ranks call the same operations in the same order with the same shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

from torch import Tensor

TransportName = Literal["nccl", "gloo", "mpi", "shm"]
TRANSPORTS: tuple[str, ...] = get_args(TransportName)
PROCESS_GROUPS: tuple[str, ...] = ("nccl", "gloo")  # those that torch.distributed must have been initialised for
Groups = tuple[tuple[int, ...], ...]  # ranks, each in one group; a group's own ranks are places in its tuple


class Pending(Protocol):
    """A message on its way."""

    def wait(self) -> Tensor:
        """What was received."""


class Transport(Protocol):
    """One rank's end. What is received may lie in memory that is used again: valid until the next `begin`."""

    name: str
    rank: int
    world_size: int

    def begin(self) -> None:
        """A pass (forward or backward) begins: what the one before has received is given up."""

    def message(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Unwritten memory, dtype and device of `like`, from where `rotate` and `reduce_scatter` need no copy."""

    def keep(self, x: Tensor) -> Tensor:
        """`x`, or a copy where its memory is used again."""

    def rotate(self, x: Tensor) -> Pending:
        """Start to send x to the next rank, and to receive the same of the previous one. x is not written any more."""

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        """The x of all ranks, one behind the other along `dim`."""

    def reduce_scatter(self, x: Tensor, dim: int) -> Tensor:
        """Of the sum over all ranks, the part of this one along `dim`."""

    def all_to_all(self, x: Tensor, split_dim: int, cat_dim: int) -> Tensor:
        """Part i of x along `split_dim` goes to rank i; what is received lies behind one another along `cat_dim`."""

    def all_reduce(self, x: Tensor, op: Literal["sum", "max"]) -> Tensor:
        """The sum or the maximum over all ranks, the same bits on every rank."""

    def split(self, groups: Groups) -> Transport:
        """The transport of the group that this rank is in; made once for the same groups."""

    def memory_bytes(self) -> int:
        """Memory of this rank that torch's allocator does not know of, as the last two passes have used it."""

    def close(self) -> None:
        """Give everything back, on all ranks together."""


def resolve(asked: str, device: str, node_of_rank: Sequence[int]) -> str:
    """The transport for `auto`: nccl on CUDA, shared memory inside a node, gloo between nodes; else what is asked for.

    Raises:
        ValueError: it cannot serve this device or these nodes.
    """
    one_node = len(set(node_of_rank)) == 1
    if asked == "auto":
        return "nccl" if device == "cuda" else "shm" if one_node else "gloo"
    if asked not in TRANSPORTS:
        raise ValueError(f"launch.transport = {asked!r}, allowed: auto, {', '.join(TRANSPORTS)}")
    if (asked == "nccl") != (device == "cuda"):
        raise ValueError(f"launch.transport = {asked} on device {device}, allowed: {_SERVES[device]}")
    if asked == "shm" and not one_node:
        raise ValueError(f"launch.transport = shm over {len(set(node_of_rank))} nodes, allowed: auto, gloo, mpi")
    return asked


_SERVES = {"cuda": "auto, nccl", "cpu": "auto, gloo, mpi, shm"}


def connect(name: str, world: Any, node_of_rank: Sequence[int], timeout_s: float) -> Transport:
    """This rank's end of a transport that `resolve` has named.

    world: an mpi4py communicator whose ranks are in the order of the ring; for gloo and nccl torch.distributed has
    been initialised in that order. node_of_rank: which node each rank is on. timeout_s: how long a rank waits for
    another.
    """
    if name in PROCESS_GROUPS:
        from attn.ring.process_group import ProcessGroup

        return ProcessGroup(name, world, node_of_rank, timeout_s)
    if name == "mpi":
        from attn.ring.messages import Messages

        return Messages(world, node_of_rank, timeout_s)
    from attn.ring.windows import Windows

    return Windows(world, timeout_s)
