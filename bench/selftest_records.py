"""What a self-test has recorded: a file of lines, a header and then one line a duel, in the order they were fought.

A line is there whole or not at all: what a killed writer left of its last one is cut off by the next.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.duel_pairs import Pair
from bench.rivals import Said

NAME = "selftest.jsonl"
Finite = Annotated[float, Field(allow_inf_nan=False)]


class CannotRecord(Exception):
    """One sentence says why nothing can be added to a file, and what to do."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Header(_Frozen):
    """The first line: where the duels are fought, and by which code (`code`: a hash of the duel's)."""

    schema_version: Literal[1] = 1
    machine: dict[str, Any]
    code: str
    rivals: dict[str, str]


class Condition(_Frozen):
    """What is done to a duel: k more calls in every n of head's, and its budget. (0, 1) is an A/A duel."""

    extra: tuple[int, int]
    budget_s: Finite

    @property
    def truth_percent(self) -> float:
        """How much slower head really is."""
        return 100 * self.extra[0] / self.extra[1]


class Told(_Frozen):
    """What the duel says by one clock, and after how many pairs it says it."""

    verdict: Literal["slower", "faster", "same", "inconclusive"]
    change_percent: Finite
    low_percent: Finite
    high_percent: Finite
    pairs: int


class Samples(_Frozen):
    """A pair as it was taken: the order of each block, and microseconds a call of its slices, in that order."""

    orders: list[str]
    wall_us: list[Finite]
    cpu_us: list[Finite]


class Fought(_Frozen):
    """A line: the `number`-th duel of a condition.

    failed: why there is no verdict. cpu: only of a cell on one thread. load: of the machine, one minute, before it.
    """

    condition: Condition
    number: int
    cell: str
    threads: int
    busy: bool
    at: str
    load: Finite
    seconds: Finite
    failed: str | None = None
    calls: int = 0
    wall: Told | None = None
    cpu: Told | None = None
    rivals: dict[str, Said] = {}
    samples: list[Samples] = []


def now() -> str:
    """The time, to the second, for a line."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def samples_of(pair: Pair) -> Samples:
    """Of a pair whose blocks have both clocks; to ten nanoseconds a call."""
    return Samples(
        orders=[order for order, _, _ in pair.blocks],
        wall_us=[round(1e3 * ms, 2) for _, wall, _ in pair.blocks for ms in wall],
        cpu_us=[round(1e3 * ms, 2) for _, _, cpu in pair.blocks for ms in cpu],
    )


def read(path: Path) -> tuple[Header, list[Fought]]:
    """All whole lines.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not what we wrote; the message says where.
    """
    first, *rest = path.read_bytes().split(b"\n")[:-1] or [b""]  # what follows the last end of a line is no line
    try:
        return Header.model_validate_json(first), [Fought.model_validate_json(line) for line in rest]
    except ValidationError as error:
        fault = error.errors()[0]
        raise ValueError(f"{path}: not a self-test's: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None


class Writer:
    """Adds lines to a file that is ours alone meanwhile."""

    def __init__(self, descriptor: int, fought: list[Fought]) -> None:
        self._descriptor, self.fought = descriptor, fought

    def add(self, line: Fought) -> None:
        """On the disk when this returns."""
        _append(self._descriptor, line)
        self.fought.append(line)


@contextmanager
def opened(path: Path, header: Header) -> Iterator[Writer]:
    """A file to add to; a new one begins with the header.

    Raises:
        CannotRecord: someone else adds to it, or it was begun on another machine or with other code.
        ValueError: it is not what we wrote.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotRecord(f"another self-test adds to {path}; wait for it to end") from None
        whole = path.read_bytes().rfind(b"\n") + 1
        os.truncate(descriptor, whole)
        os.lseek(descriptor, 0, os.SEEK_END)
        if not whole:
            _append(descriptor, header)
        found, fought = read(path)
        _refuse_another(path, found, header)
        yield Writer(descriptor, fought)
    finally:
        os.close(descriptor)


def _append(descriptor: int, line: BaseModel) -> None:
    text = json.dumps(line.model_dump(mode="json"), allow_nan=False, separators=(",", ":")) + "\n"
    left = memoryview(text.encode())
    while left:
        left = left[os.write(descriptor, left) :]
    os.fsync(descriptor)


def _refuse_another(path: Path, found: Header, ours: Header) -> None:
    again = f"keep {path} under another name, and begin a new one"
    for field in {**found.machine, **ours.machine}:
        was, now_ = found.machine.get(field), ours.machine.get(field)
        if was != now_:
            raise CannotRecord(f"{path} is of another machine: {field} {was!r}, here {now_!r}; {again}")
    if found.code != ours.code:
        raise CannotRecord(f"{path} was measured with other code ({found.code}, now {ours.code}); {again}")
