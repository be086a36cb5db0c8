"""When each stage that DVC ran began and ended: a line each, beside DVC's own bookkeeping, never a result."""

from __future__ import annotations

import atexit
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import guard
from bench.spent import Spent

LOG = Path(".dvc/tmp/attn-bench-stages.jsonl")


@dataclass(frozen=True)
class Ran:
    """A stage by DVC's name; `began` and `ended` in seconds since the epoch; `dvc`: which process ran it."""

    name: str
    dvc: int
    began: float
    ended: float

    @property
    def kind(self) -> str:
        """Without the part after @."""
        return self.name.partition("@")[0]

    @property
    def wall_s(self) -> float:
        """From the start of its interpreter to its end."""
        return self.ended - self.began


def note(log: Path = LOG) -> None:
    """Called first by a stage: a line when it ends, however it does but by a kill. Outside of DVC nothing."""
    name, dvc = os.environ.get("DVC_STAGE"), guard.dvc()
    began = time.time() - sum(Spent.of_process().seconds().values())
    if name is None or dvc is None:
        return

    def write() -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(Ran(name, dvc, round(began, 3), round(time.time(), 3)))) + "\n")

    atexit.register(write)


def read(log: Path = LOG) -> list[Ran]:
    """The last run of each stage, in the order in which they ended; a line that a killed writer left is skipped."""
    found: dict[str, Ran] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        try:
            one = Ran(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found.pop(one.name, None)
        found[one.name] = one
    return list(found.values())
