"""The communicator that a ring schedule is given: who I am, how to reach the others, and a count of what was sent.

`payload_bytes` is what the schedule hands over to be sent to others, counted as it is handed over: a rotation its
message; an all-gather (world_size - 1) times the local part; a reduce-scatter and an all-to-all what does not stay,
(world_size - 1) / world_size; an all-reduce twice that, as a ring of reduce-scatter and all-gather needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from attn.ring.transport import Groups, Pending, Transport


@dataclass
class Sent:
    """A count that a communicator shares with those that it was split into."""

    payload_bytes: int = 0
    messages: int = 0

    def add(self, payload_bytes: float, messages: int) -> None:
        """Whole bytes: the part of a message that cannot be divided evenly is rounded up."""
        self.payload_bytes += math.ceil(payload_bytes)
        self.messages += messages


@dataclass
class Communicator:
    """One rank's view of the ring. With world_size 1 nothing is sent and no transport is needed.

    seq_len: of the whole sequence, which tells padding from tokens. node_of_rank: which node each rank is on.
    ulysses_size: ranks that a two-dimensional schedule groups for its all-to-all; 0: it chooses. Tensors that are
    received are valid until the next `begin`: what a row returns, or saves for its backward, goes through `keep`.
    """

    rank: int
    world_size: int
    seq_len: int
    transport: Transport | None = None
    node_of_rank: Sequence[int] = (0,)
    ulysses_size: int = 0
    sent: Sent = field(default_factory=Sent)

    @property
    def payload_bytes(self) -> int:
        """What was handed over to be sent, bytes."""
        return self.sent.payload_bytes

    @property
    def messages(self) -> int:
        """In how many messages."""
        return self.sent.messages

    def begin(self) -> None:
        """First of all in a forward and in a backward."""
        if self.transport:
            self.transport.begin()

    def message(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Unwritten memory, dtype and device of `like`, from which sending costs least."""
        return self.transport.message(shape, like) if self.transport else like.new_empty(tuple(shape))

    def pack(self, *parts: Tensor) -> Tensor:
        """Tensors of one shape in one message, (len(parts), *shape)."""
        packed = self.message((len(parts), *parts[0].shape), parts[0])
        for place, part in zip(packed, parts, strict=True):
            place.copy_(part)
        return packed

    def keep(self, x: Tensor) -> Tensor:
        """`x` for longer than this pass: a copy where its memory belongs to the transport."""
        return self.transport.keep(x) if self.transport else x

    def rotate(self, x: Tensor) -> Pending:
        """Start to send x to the next rank; `wait` gives what the previous one has sent. x is not written any more.

        Raises:
            ValueError: there is no other rank.
        """
        if not self.transport:
            raise ValueError("a ring of one rank has nobody to rotate with")
        self.sent.add(x.nbytes, 1)
        return self.transport.rotate(x)

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        """The x of every rank in their order, one behind the other along `dim`."""
        if not self.transport:
            return x
        self._count((self.world_size - 1) * x.nbytes)
        return self.transport.all_gather(x, dim)

    def reduce_scatter(self, x: Tensor, dim: int) -> Tensor:
        """The sum over ranks, of which this rank gets its part along `dim`."""
        if not self.transport:
            return x
        self._count(self._leaving(x))
        return self.transport.reduce_scatter(x, dim)

    def all_to_all(self, x: Tensor, split_dim: int, cat_dim: int) -> Tensor:
        """Part i of x along `split_dim` goes to rank i; what is received lies behind one another along `cat_dim`."""
        if not self.transport:
            return x
        self._count(self._leaving(x))
        return self.transport.all_to_all(x, split_dim, cat_dim)

    def all_reduce(self, x: Tensor, op: Literal["sum", "max"] = "sum") -> Tensor:
        """The sum or maximum over ranks, the same bits everywhere."""
        if not self.transport:
            return x
        self._count(2 * self._leaving(x))
        return self.transport.all_reduce(x, op)

    def grid(self, inner_size: int) -> tuple[Communicator, Communicator]:
        """(inner, outer): `inner_size` neighbours on the ring, and the ranks that have the same place among theirs.

        Raises:
            ValueError: inner_size does not divide world_size.
        """
        if self.world_size % inner_size:
            raise ValueError(f"a group of {inner_size} ranks does not divide a world of {self.world_size}")
        ranks = range(self.world_size)
        inner = tuple(tuple(ranks[first : first + inner_size]) for first in ranks[::inner_size])
        outer = tuple(tuple(ranks[place::inner_size]) for place in range(inner_size))
        return self._of(inner), self._of(outer)

    def _of(self, groups: Groups) -> Communicator:
        (mine,) = (group for group in groups if self.rank in group)
        nodes = [self.node_of_rank[rank] for rank in mine]
        transport = self.transport.split(groups) if self.transport and len(mine) > 1 else None
        return Communicator(mine.index(self.rank), len(mine), self.seq_len, transport, nodes, sent=self.sent)

    def _leaving(self, x: Tensor) -> float:
        return x.nbytes * (self.world_size - 1) / self.world_size

    def _count(self, payload_bytes: float) -> None:
        self.sent.add(payload_bytes, self.world_size - 1)
