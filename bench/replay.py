"""Transports for diagnosis, around a real one: one that moves nothing, one that waits at once, one that takes notes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from attn.ring.transport import Groups, Transport
from bench.device import Do

_Found = list[Tensor | None]  # what each step of a replay has given


@dataclass(frozen=True)
class _Here:
    """A message that has come."""

    received: Tensor

    def wait(self) -> Tensor:
        """At once."""
        return self.received


class Alone:
    """Moves nothing and waits for nobody: what is received is memory of the right shape, with values that were sent.

    It is the same memory at the same place of every second pass, so that it costs neither allocation nor copies.
    """

    def __init__(self, real: Transport) -> None:
        self.name, self.rank, self.world_size = "alone", real.rank, real.world_size
        self._real, self._half, self._next = real, 0, 0
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._splits: dict[Groups, Alone] = {}

    def begin(self) -> None:
        """The other half of what is kept."""
        self._half, self._next = 1 - self._half, 0
        for one in self._splits.values():
            one.begin()

    def message(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Kept."""
        return self._memory(lambda: like.new_zeros(tuple(shape)))

    def keep(self, x: Tensor) -> Tensor:
        """Itself: a copy is the transport's cost."""
        return x

    def rotate(self, x: Tensor) -> _Here:
        """A copy of what was sent when the place was first come to."""
        return _Here(self._memory(lambda: _copy(x)))

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        """As if every rank had sent the same."""
        return self._memory(lambda: torch.cat([x] * self.world_size, dim))

    def reduce_scatter(self, x: Tensor, dim: int) -> Tensor:
        """This rank's part of its own."""
        return self._memory(lambda: _copy(x.chunk(self.world_size, dim)[self.rank]))

    def all_to_all(self, x: Tensor, split_dim: int, cat_dim: int) -> Tensor:
        """Its own parts."""
        return self._memory(lambda: torch.cat(x.chunk(self.world_size, split_dim), cat_dim))

    def all_reduce(self, x: Tensor, op: Literal["sum", "max"]) -> Tensor:
        """Its own."""
        return self._memory(lambda: _copy(x))

    def split(self, groups: Groups) -> Alone:
        """The same for a group."""
        if groups not in self._splits:
            self._splits[groups] = Alone(self._real.split(groups))
        return self._splits[groups]

    def memory_bytes(self) -> int:
        """Nothing that torch does not know of."""
        return 0

    def close(self) -> None:
        """The real one belongs to who made it."""

    def _memory(self, make: Callable[[], Tensor]) -> Tensor:
        place = self._half, self._next
        self._next += 1
        if place not in self._kept:
            self._kept[place] = make().detach()
        return self._kept[place].detach()  # a tensor of its own, which autograd may put into its graph


class InSequence:
    """The real transport, but a rotation is waited for where it begins: nothing is hidden."""

    def __init__(self, real: Transport) -> None:
        self.name, self.rank, self.world_size, self._real = real.name, real.rank, real.world_size, real
        self._splits: dict[Groups, InSequence] = {}

    def begin(self) -> None:
        """Groups begin with it."""
        self._real.begin()

    def message(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """The real one's."""
        return self._real.message(shape, like)

    def keep(self, x: Tensor) -> Tensor:
        """As the real one does."""
        return self._do("keep", x)

    def rotate(self, x: Tensor) -> _Here:
        """To its end."""
        return _Here(self._do("rotate", x))

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        """As the real one does."""
        return self._do("all_gather", x, dim)

    def reduce_scatter(self, x: Tensor, dim: int) -> Tensor:
        """As the real one does."""
        return self._do("reduce_scatter", x, dim)

    def all_to_all(self, x: Tensor, split_dim: int, cat_dim: int) -> Tensor:
        """As the real one does."""
        return self._do("all_to_all", x, split_dim, cat_dim)

    def all_reduce(self, x: Tensor, op: Literal["sum", "max"]) -> Tensor:
        """As the real one does."""
        return self._do("all_reduce", x, op)

    def split(self, groups: Groups) -> Transport:
        """The same for a group."""
        if groups not in self._splits:
            self._splits[groups] = self._around(self._real.split(groups))
        return self._splits[groups]

    def memory_bytes(self) -> int:
        """The real one's."""
        return self._real.memory_bytes()

    def close(self) -> None:
        """The real one belongs to who made it."""

    def _do(self, operation: str, x: Tensor, *more: Any) -> Tensor:
        return _done(self._real, operation, x, more)

    def _around(self, real: Transport) -> InSequence:
        return InSequence(real)


class Recording(InSequence):
    """Also notes what it is asked for, so that it can be asked again without whoever asked."""

    def __init__(self, real: Transport, notes: _Notes | None = None) -> None:
        super().__init__(real)
        self._notes = notes or _Notes([], [])

    def begin(self) -> None:
        """Noted."""
        super().begin()
        self._notes.add(lambda _: self._real.begin(), None)

    def message(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Noted; asked again it is the very same memory where it is nobody's, and else what the transport gives."""
        made, size = super().message(shape, like), tuple(shape)
        owned = self._real.keep(made) is made
        self._notes.add((lambda _: made) if owned else (lambda _: self._real.message(size, like)), made)
        return made

    def replay(self) -> Do:
        """All that was noted, once more each time."""
        steps = tuple(self._notes.steps)
        self._notes.made.clear()

        def run() -> None:
            found: _Found = []
            for step in steps:
                found.append(step(found))

        return run

    def _do(self, operation: str, x: Tensor, *more: Any) -> Tensor:
        again, made = self._notes.where(x), super()._do(operation, x, *more)
        self._notes.add(lambda found: _done(self._real, operation, again(found), more), made)
        return made

    def _around(self, real: Transport) -> InSequence:
        return Recording(real, self._notes)


@dataclass(frozen=True)
class _Notes:
    """Steps, and what each has made: held until all is noted, so that an address tells whose memory it is."""

    steps: list[Callable[[_Found], Tensor | None]]
    made: _Found

    def add(self, step: Callable[[_Found], Tensor | None], made: Tensor | None) -> None:
        self.steps.append(step)
        self.made.append(made)

    def where(self, x: Tensor) -> Callable[[_Found], Tensor]:
        """How to get at x in a replay: a view of what a step makes, or, where it is the schedule's own, x itself."""
        for index in reversed(range(len(self.made))):
            made = self.made[index]
            if made is not None and 0 <= x.data_ptr() - made.data_ptr() < made.nbytes and x.dtype == made.dtype:
                return _view(index, x, (x.data_ptr() - made.data_ptr()) // x.itemsize)
        held = x.detach()
        return lambda _: held


def _view(index: int, x: Tensor, offset: int) -> Callable[[_Found], Tensor]:
    size, stride = x.shape, x.stride()

    def view(found: _Found) -> Tensor:
        made = found[index]
        assert made is not None
        return made.as_strided(size, stride, made.storage_offset() + offset)

    return view


def _done(transport: Transport, operation: str, x: Tensor, more: tuple[Any, ...]) -> Tensor:
    result = getattr(transport, operation)(x, *more)
    return result.wait() if operation == "rotate" else result  # type: ignore[no-any-return]


def _copy(x: Tensor) -> Tensor:
    return x.detach().clone(memory_format=torch.contiguous_format)
