"""What a worker is told: plain values that travel as JSON. Free of torch, as is whoever writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CHECKED_WORLD_SIZES = (1, 2, 4, 8)  # on which rings are checked; on 8 only a few cases
REAL = "data/real/minilm.safetensors"  # what the stage `capture` writes


def shown_against_ranks(case: dict[str, Any]) -> bool:
    """Of a workload's fields and `variant`: whether its errors are shown against the number of ranks."""
    return (case["seq_len"], case["variant"]) == (513, "normal") and case["dtype"] != "float16"


@dataclass(frozen=True)
class Job:
    """All that a worker must know to measure a cell in one process.

    threads: of each rank. all_threads: of the reference, which runs in one process on the whole machine.
    """

    implementation: str
    reference: str
    oracle: str
    workload: dict[str, Any]
    world_size: int
    device: str
    threads: int
    all_threads: int
    protocol: dict[str, Any]
    process: int


@dataclass(frozen=True)
class CheckJob:
    """What a worker must know to check an implementation on some of its cases.

    truths: a folder with the solved cases of its kind, or nothing. real: the file of real inputs. only: a regular
    expression that the names of its cases match (`workloads` are judged all). no_real: why there are no real inputs.
    so_far: a file that takes each case as it begins and as it ends, a line of JSON, for whoever outlives the worker.
    """

    implementation: str
    device: str
    threads: int
    seed: int
    world_size: int
    workloads: list[dict[str, Any]]
    truths: str = ""
    real: str = REAL
    only: str = ""
    no_real: str = "no real inputs: `dvc repro capture`"
    so_far: str = ""
