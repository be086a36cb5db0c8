"""Memory that the ranks of a node share (MPI_Win_allocate_shared): what would be sent is read where it lies.

A rotation hands over a place: every rank holds the same offset of another rank's segment, and a counter says when the
rank before has let go of it. Results lie in these segments too, in one of two halves that take turns: a half is
written again in the next but one pass, once every rank has begun the pass between, so nobody reads it any more.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from attn.ring.transport import Groups, Transport

_ALIGN = 4096  # a page: neighbours in a segment do not share a cache line
_SMALLEST = 1 << 20
_SPIN_S, _YIELD_S, _SLEEP_S = 5e-5, 1e-3, 1e-4
_POSTED, _BEGUN, _COUNTERS = 0, 1, 16  # a rank's counters, 128 bytes


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: in whose segment, at which offset in bytes."""

    owner: int
    offset: int


@dataclass(frozen=True)
class _Handover:
    windows: Windows
    source: int
    posted: int
    received: Tensor

    def wait(self) -> Tensor:
        """The place that the previous rank has let go of."""
        self.windows.wait_for(self.source, _POSTED, self.posted)
        return self.received


class _Half:
    """One of the two halves: a segment a rank, all of one size, which grows when a pass needs more."""

    def __init__(self, mpi: Any, world: Any, timeout_s: float) -> None:
        self._mpi, self._world, self._timeout_s = mpi, world, timeout_s
        self._window: Any = None
        self._outgrown: list[Any] = []
        self._ranges: list[tuple[int, int]] = []  # first byte and size of each segment, those of `_outgrown` too
        self.segments: list[Tensor] = []
        self.bases: list[int] = []
        self.size = self.used = self.taken = 0

    def begin(self) -> None:
        """Start over; what was outgrown in the pass before is read by nobody any more."""
        for window in self._outgrown:
            window.Free()
        self._outgrown, self.used, self.taken = [], 0, 0
        self._ranges = [(base, self.size) for base in self.bases]

    def holds(self, x: Tensor) -> bool:
        """Whether x lies in a segment that is there until the next `begin`."""
        return any(base <= x.data_ptr() < base + size for base, size in self._ranges)

    def take(self, nbytes: int) -> int:
        """Offset of so many bytes, the same on all ranks."""
        offset = self.used
        self.used += (whole := -(-nbytes // _ALIGN) * _ALIGN)
        self.taken += whole
        if self.used > self.size:
            self._grow()
            offset, self.used = 0, self.used - offset
        return offset

    def close(self) -> None:
        """Free everything."""
        self.segments = []
        for window in [*self._outgrown, *([self._window] if self._window else [])]:
            window.Free()

    def _grow(self) -> None:
        _meet(self._world, self._timeout_s)
        if self._window:
            self._outgrown.append(self._window)
        self.size = max(_SMALLEST, 1 << (2 * self.used - 1).bit_length())
        self._window = self._mpi.Win.Allocate_shared(self.size, 1, comm=self._world)
        self.segments = [_mapped(self._window, rank) for rank in range(self._world.size)]
        self.bases = [one.data_ptr() for one in self.segments]
        self._ranges += [(base, self.size) for base in self.bases]


class Windows:
    """Shared memory inside a node. See `attn.ring.transport.Transport`."""

    name = "shm"

    def __init__(self, world: Any, timeout_s: float) -> None:
        from mpi4py import MPI

        self._mpi, self._world, self._timeout_s = MPI, world.Dup(), timeout_s
        self.rank, self.world_size = world.rank, world.size
        self._halves = (_Half(MPI, self._world, timeout_s), _Half(MPI, self._world, timeout_s))
        self._half = self._halves[0]
        self._control = MPI.Win.Allocate_shared(8 * _COUNTERS, 1, comm=self._world)
        self._counters = [_mapped(self._control, rank).view(torch.int64).numpy() for rank in range(self.world_size)]
        self._counters[self.rank][:] = 0
        self._control.Lock_all()
        self._world.Barrier()
        self._splits: dict[Groups, Transport] = {}

    def begin(self) -> None:
        """Take the other half, when every rank has left it."""
        begun = int(self._counters[self.rank][_BEGUN]) + 1
        self._set(_BEGUN, begun)
        for rank in range(self.world_size):
            self.wait_for(rank, _BEGUN, begun - 1)
        self._half = self._halves[begun % 2]
        self._half.begin()
        for one in self._splits.values():
            one.begin()

    def message(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """In this rank's own segment."""
        (mine,) = self._views(shape, like, [self.rank])
        return mine

    def keep(self, x: Tensor) -> Tensor:
        """A copy where x lies in a segment, of this or of the other half."""
        inside = any(half.holds(x) for half in self._halves) or any(
            one.keep(x) is not x for one in self._splits.values()
        )
        return x.clone() if inside else x

    def rotate(self, x: Tensor) -> _Handover:
        """Nothing moves, but what does not lie in a segment yet: what is received is the same place one rank before."""
        place = self._placed(x)
        source = (self.rank - 1) % self.world_size
        received = self._at(_Place((place.owner - 1) % self.world_size, place.offset), x.shape, x)
        return _Handover(self, source, self._post(), received)

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        """Every rank writes its part into the segment of rank 0, where all of them read."""
        shape = list(x.shape)
        shape[dim] *= self.world_size
        (gathered,) = self._views(shape, x, [0])
        gathered.chunk(self.world_size, dim)[self.rank].copy_(x)
        self._all_posted()
        return gathered

    def reduce_scatter(self, x: Tensor, dim: int) -> Tensor:
        """Every rank adds up its part of everyone's, in the order of ranks."""
        parts = [one.chunk(self.world_size, dim)[self.rank] for one in self._of_all(x)]
        return torch.stack(parts).sum(0)

    def all_to_all(self, x: Tensor, split_dim: int, cat_dim: int) -> Tensor:
        """Every rank writes its parts where they belong, in the segments of the others."""
        parts = x.chunk(self.world_size, split_dim)
        shape = list(parts[0].shape)
        shape[cat_dim] *= self.world_size
        received = self._views(shape, x, range(self.world_size))
        for target, part in zip(received, parts, strict=True):
            target.chunk(self.world_size, cat_dim)[self.rank].copy_(part)
        self._all_posted()
        mine: Tensor = received[self.rank]
        return mine

    def all_reduce(self, x: Tensor, op: Literal["sum", "max"]) -> Tensor:
        """Every rank reduces everyone's, in the order of ranks: the same bits everywhere."""
        everyone = torch.stack(self._of_all(x))
        return everyone.sum(0) if op == "sum" else everyone.amax(0)

    def split(self, groups: Groups) -> Transport:
        """Windows of the group."""
        if groups not in self._splits:
            color = next(i for i, group in enumerate(groups) if self.rank in group)
            self._splits[groups] = Windows(self._world.Split(color, self.rank), self._timeout_s)
        return self._splits[groups]

    def memory_bytes(self) -> int:
        """What the last two passes have used of this rank's segments; what all of them gather counts at every rank."""
        inside = sum(one.memory_bytes() for one in self._splits.values())
        return sum(half.taken for half in self._halves) + inside

    def close(self) -> None:
        """Free all windows, on all ranks together."""
        for one in self._splits.values():
            one.close()
        for half in self._halves:
            half.close()
        self._control.Unlock_all()
        self._counters = []
        self._control.Free()
        self._world.Free()

    def wait_for(self, rank: int, counter: int, value: int) -> None:
        """Until a counter of a rank has reached a value: spinning first, then giving way to who has work to do.

        Raises:
            TimeoutError: it has not within `timeout_s`.
        """
        theirs = self._counters[rank]
        start = time.perf_counter()
        while theirs[counter] < value:
            waited = time.perf_counter() - start
            if waited > self._timeout_s:
                raise TimeoutError(
                    f"rank {self.rank} waiting for rank {rank}: nothing came within {self._timeout_s:g} s"
                )
            if waited > _YIELD_S:
                time.sleep(_SLEEP_S)
            elif waited > _SPIN_S:
                os.sched_yield()
        self._control.Sync()

    def _set(self, counter: int, value: int) -> None:
        self._control.Sync()  # what was written before is seen by whoever sees the counter
        self._counters[self.rank][counter] = value

    def _post(self) -> int:
        posted = int(self._counters[self.rank][_POSTED]) + 1
        self._set(_POSTED, posted)
        return posted

    def _all_posted(self) -> None:
        posted = self._post()
        for rank in range(self.world_size):
            self.wait_for(rank, _POSTED, posted)

    def _of_all(self, x: Tensor) -> list[Tensor]:
        """The x of every rank, where it lies."""
        place = self._placed(x)
        self._all_posted()
        return [self._at(_Place(rank, place.offset), x.shape, x) for rank in range(self.world_size)]

    def _placed(self, x: Tensor) -> _Place:
        """Where x lies; it is copied into this rank's segment where it lies elsewhere."""
        address = x.data_ptr()
        for owner, base in enumerate(self._half.bases):
            if base <= address < base + self._half.size and x.is_contiguous():
                return _Place(owner, address - base)
        mine = self.message(x.shape, x)
        mine.copy_(x)
        return _Place(self.rank, mine.data_ptr() - self._half.bases[self.rank])

    def _views(self, shape: Sequence[int], like: Tensor, owners: Sequence[int]) -> list[Tensor]:
        """New memory at the same offset of these ranks' segments."""
        offset = self._half.take(math.prod(shape) * like.itemsize)
        return [self._at(_Place(owner, offset), shape, like) for owner in owners]

    def _at(self, place: _Place, shape: Sequence[int], like: Tensor) -> Tensor:
        nbytes = math.prod(shape) * like.itemsize
        segment = self._half.segments[place.owner][place.offset : place.offset + nbytes]
        return segment.view(like.dtype).view(tuple(shape))


def _meet(world: Any, timeout_s: float) -> None:
    """Line all ranks up before MPI does, which would wait for ever.

    Raises:
        TimeoutError: they did not come in time.
    """
    request, end = world.Ibarrier(), time.perf_counter() + timeout_s
    while not request.Test():
        if time.perf_counter() > end:
            raise TimeoutError(f"rank {world.rank} waiting for the others: they did not come within {timeout_s:g} s")
        time.sleep(_SLEEP_S)


def _mapped(window: Any, rank: int) -> Tensor:
    """A rank's segment, as bytes."""
    buffer, _ = window.Shared_query(rank)
    return torch.from_numpy(np.frombuffer(buffer, dtype=np.uint8))
