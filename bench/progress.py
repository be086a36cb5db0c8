"""Progress of long work: a bar on a terminal, plain lines elsewhere. Everything goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


class Steps:
    """Told what is done as it is done."""

    def __init__(self, title: str, total: int, bar: Progress | None) -> None:
        self._title, self._total, self._bar = title, total, bar
        self._task = bar.add_task(title, total=total, detail="") if bar else None
        self._done, self._start = 0, time.monotonic()
        if not bar:
            print(f"{title} 0/{total}", file=sys.stderr, flush=True)

    def step(self, detail: str) -> None:
        """One more is done; `detail` says which, and how it ended."""
        self._done += 1
        if self._bar and self._task is not None:
            self._bar.update(self._task, advance=1, detail=detail)
        else:
            spent = time.monotonic() - self._start
            print(f"{self._title} {self._done}/{self._total} {spent:.0f} s  {detail}", file=sys.stderr, flush=True)


@contextmanager
def steps(title: str, total: int) -> Iterator[Steps]:
    """`with steps("check standard", 40) as progress: ... progress.step("case")`."""
    if not sys.stderr.isatty():
        yield Steps(title, total, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    title_, detail = TextColumn("{task.description}"), TextColumn("{task.fields[detail]}")
    columns = (title_, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), detail)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield Steps(title, total, bar)
