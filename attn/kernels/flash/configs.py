"""Which tiles the kernels can run with, by name, and which of them passed the build. Imports no triton.

`stages/build.py` compiles every candidate for every architecture without a GPU and writes `passed.json`: only what
stands there can be chosen on a GPU, the first in the order below (the larger tile first).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from attn.contract import Unsupported

ARCHITECTURES = (80, 90, 100, 120)
PASSED = Path(__file__).parent / "passed.json"
TUNED = "ATTN_BENCH_TUNED"  # environment: a file of bench/tune.py
HEAD_DIMS = (32, 64, 128, 256)  # others are padded to the next
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")  # tf32: float32 in memory, products on tensor cores


@dataclass(frozen=True)
class Config:
    """A tile of block_m queries by block_n keys.

    tma: rows are loaded by tensor descriptors, not by pointers. specialize: loads and products have warps of their own.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    tma: bool = False
    specialize: bool = False

    @property
    def name(self) -> str:
        """As in `m128n64w8s3` or `m128n64w8s3-tma`."""
        more = ("-tma" if self.tma else "") + ("-ws" if self.specialize else "")
        return f"m{self.block_m}n{self.block_n}w{self.num_warps}s{self.num_stages}{more}"

    @classmethod
    def parse(cls, name: str) -> Config:
        """The inverse of `name`."""
        found = re.fullmatch(r"m(\d+)n(\d+)w(\d+)s(\d+)(-tma)?(-ws)?", name)
        if found is None:
            raise ValueError(f"configuration {name!r}, allowed: names as in m128n64w8s3-tma")
        m, n, warps, stages = map(int, found.groups()[:4])
        return cls(m, n, warps, stages, *map(bool, found.groups()[4:]))


_INTERPRETED_LONG = 300
MOST_ROWS = 256  # no tile has more queries, and lse and delta of a backward are as long as whole tiles
ROWS = 32  # of a program of the kernels without a product: delta, merge, reduce


def padded(head_dim: int) -> int:
    """The head_dim that a kernel is compiled for.

    Raises:
        Unsupported: it is larger than any.
    """
    found = next((size for size in HEAD_DIMS if head_dim <= size), None)
    if found is None:
        raise Unsupported(f"head_dim {head_dim}, the kernels have 1 to {HEAD_DIMS[-1]}")
    return found


def interpreted(seq_len: int) -> Config:
    """On the CPU, for checks only: where there are few tokens, tiles of which even those are several."""
    return Config(64, 32, 4, 1) if seq_len < _INTERPRETED_LONG else Config(256, 128, 4, 1)


def architecture(capability: tuple[int, int]) -> int:
    """Of the built architectures the one whose configurations fit a device, by its shared memory and its tensor cores.

    Raises:
        Unsupported: it is older than all of them.
    """
    major, minor = capability
    if major < 8:
        raise Unsupported(f"compute capability {major}.{minor}, the kernels need 8.0 or newer")
    if (major, minor) in ((8, 6), (8, 7), (8, 9)) or major >= 12:
        return 120  # about 100 KiB of shared memory, HMMA
    return {8: 80, 9: 90}.get(major, 100)


def key(kernel: str, arch: int, precision: str, head_dim: int) -> str:
    """What configurations are listed under, as in `forward/sm_90/bfloat16/d64`."""
    return f"{kernel}/sm_{arch}/{precision}/d{padded(head_dim)}"


CHOSEN: dict[str, str] = {}  # what this process has run with, by key, for its record
FORCED: dict[str, str] = {}  # what it must run with, while configurations are compared


@cache
def order() -> dict[str, list[str]]:
    """`passed`, where this machine has timed them (a file that TUNED names) the fastest first, without what failed."""
    path = os.environ.get(TUNED)
    timed = json.loads(Path(path).read_text(encoding="utf-8")) if path and Path(path).exists() else {}
    return {key: _by_time(names, timed.get(key)) for key, names in passed().items()}


def _by_time(names: list[str], timed: dict[str, float | str] | None) -> list[str]:
    """`timed`: milliseconds, or why one cannot run here, by name."""
    if timed is None:
        return names
    ran = {name: ms for name in names if isinstance(ms := timed.get(name), float)}
    return sorted(ran, key=lambda name: ran[name])


@cache
def passed() -> dict[str, list[str]]:
    """Of every key, names of the configurations that passed the build, the first to be chosen."""
    return json.loads(PASSED.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
