"""The record of a cell. A record with figures that is not ok, or a status without a reason, cannot be made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from attn.contract import Precision
from bench.files import write_json

Status = Literal["ok", "incorrect", "unsupported", "out_of_memory", "timeout", "crashed", "not_measured"]
KEPT, NOT_KEPT = "kept", "as the C library does"  # of a state: what a process does with the memory that it freed
LEFT_OUT = "left out in params.yaml: "  # how the reason of such a cell begins
FAILED: tuple[Status, ...] = ("incorrect", "crashed", "timeout")  # what `gate` does not let pass
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Frozen):
    """A value with its 95 % interval."""

    value: Finite
    low: Finite
    high: Finite

    @model_validator(mode="after")
    def _ordered(self) -> Figure:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value} lies outside of its interval, {self.low} to {self.high}")
        return self


class Figures(_Frozen):
    """What is known of a right cell.

    relative_time: to the reference, paired, same process. For rings: to the reference in one process on all cores;
    `efficiency` is its inverse, as if that process had the cores of all hosts, or all devices. peak_mib is net of
    inputs. tflops and throughput follow from time_ms. first_call_ms is the median over processes. hot_ms: without the
    cache flush that time_ms has before each call, where a device has such a cache.
    """

    time_ms: Figure
    hot_ms: Figure | None = None
    relative_time: Figure | None
    efficiency: Figure | None
    throughput_tok_per_s: Finite
    flops: int
    tflops: Finite
    first_call_ms: Finite
    peak_mib: Finite
    peak_with_inputs_mib: Finite
    rss_growth_mib: Finite
    payload_bytes: int | None
    messages: int | None


class Loss(_Frozen):
    """From ideal to real, ms: ideal + smaller_blocks + merge + imbalance + exposed = real.

    ideal: the yardstick in one process, as if on all cores or devices of the ranks. smaller_blocks: what the mean
    rank computes longer than that, merging apart. imbalance: what the slowest rank computes longer than the mean
    one. exposed: what the ring takes longer than its slowest rank computes: waiting. A term may be negative.
    """

    ideal_ms: Finite
    smaller_blocks_ms: Finite
    merge_ms: Finite
    imbalance_ms: Finite
    exposed_ms: Finite
    real_ms: Finite

    @property
    def terms(self) -> dict[str, float]:
        """All that is lost, ms by name."""
        return {name: x for name, x in self.model_dump().items() if name not in ("ideal_ms", "real_ms")}

    @model_validator(mode="after")
    def _adds_up(self) -> Loss:
        found = self.ideal_ms + sum(self.terms.values())
        if abs(found - self.real_ms) > 1e-6 * max(abs(self.real_ms), abs(self.ideal_ms)):
            raise ValueError(f"ideal and losses make {found} ms, not {self.real_ms}")
        return self


class Ring(_Frozen):
    """What is known of a right cell of several ranks, or of one.

    transport: None with one rank. node_of_rank, hosts, threads, rank_ms, rank_compute_ms, rank_peak_mib: of each rank
    in the order of the ring; medians. payload_formula_bytes: what a rank must hand over, None for a row without a
    formula; figures.payload_bytes is what it did. wire_bytes: what crossed the network, all hosts together.

    real_ms to hidden: of `rounds` rounds in one launch, calls that are not judged; the slowest rank's. hidden: the
    share of communication that costs no time, 1 - (real - compute) / communication, of rounds.
    """

    transport: str | None
    node_of_rank: list[int]
    hosts: list[str]
    threads: list[int]
    payload_formula_bytes: int | None
    wire_bytes: int
    rank_ms: list[Finite]
    rank_compute_ms: list[Finite]
    rank_peak_mib: list[Finite]
    rounds: int
    real_ms: Figure
    compute_ms: Figure
    communication_ms: Figure | None
    sequence_ms: Figure | None
    hidden: Figure | None
    loss: Loss | None
    no_loss: str | None

    @model_validator(mode="after")
    def _whole(self) -> Ring:
        lists = (self.node_of_rank, self.hosts, self.threads, self.rank_ms, self.rank_compute_ms, self.rank_peak_mib)
        if len({len(one) for one in lists}) != 1:
            raise ValueError(f"not one value a rank everywhere: {[len(one) for one in lists]}")
        if (self.loss is None) == (self.no_loss is None):
            raise ValueError("either a loss budget or why there is none")
        alone = (self.communication_ms, self.sequence_ms, self.hidden)
        nothing, sends_itself = alone == (None, None, None), self.transport is not None and self.loss is None
        if (None in alone) != nothing or nothing != (self.transport is None or (nothing and sends_itself)):
            raise ValueError("ranks have a transport and times of communication, or none of these")
        return self


class Record(_Frozen):
    """One cell, as measured (or not) on one machine. Since schema 2 a ring's figures come with its `ring`.

    spent_s: seconds by phase (bench.spent), with an equal share of what its stage took besides cells, so that those of
    a stage's records add up to its wall time; empty where it was not recorded.
    """

    schema_version: Literal[1, 2] = 2
    implementation: str
    family: str
    grid: str
    workload: dict[str, Any]
    world_size: int
    precision: Precision = "dtype"  # of products, as the row declares it
    threads: int
    oversubscribed: bool
    reference: str
    status: Status
    reason: str | None
    backend: str | None = None
    configurations: dict[str, str] = {}  # of our kernels, by kernel, architecture, precision and head_dim
    not_compared: str | None = None
    max_abs_error: dict[str, float] = {}
    over_budget: dict[str, float] = {}
    sampled: str | None = None  # what of its results was judged, where not everything was
    figures: Figures | None = None
    ring: Ring | None = None
    processes: list[dict[str, Any]] = []
    state: dict[str, Any] = {}
    spent_s: dict[str, Finite] = {}
    measured_at: str | None = None

    @property
    def left_out(self) -> bool:
        """Whether params.yaml leaves this cell out of its grid."""
        return (self.reason or "").startswith(LEFT_OUT)

    @model_validator(mode="after")
    def _legal(self) -> Record:
        if (self.status == "ok") != (self.figures is not None):
            raise ValueError(f"figures exist only with status ok, and always then; this is {self.status}")
        if (self.status == "ok") != (self.reason is None):
            raise ValueError(f"every status but ok has a reason, and ok has none; this is {self.status}")
        if self.reason is not None and ("\n" in self.reason or not self.reason.strip()):
            raise ValueError("a reason is one line of words")
        if (self.ring is not None) != (self.family == "ring" and self.status == "ok" and self.schema_version > 1):
            raise ValueError(f"`ring` exists only with status ok in family ring, and always then; {self.family} here")
        if self.ring and len(self.ring.hosts) != self.world_size:
            raise ValueError(f"{len(self.ring.hosts)} hosts of {self.world_size} ranks")
        if self.figures and self.processes == []:
            raise ValueError("figures come with all their samples")
        if self.status == "ok" and not all(ratio <= 1 for ratio in self.over_budget.values()):
            raise ValueError("ok, but over its error budget")
        if self.over_budget.keys() != self.max_abs_error.keys():
            raise ValueError("every judged tensor has both its error and its share of the budget")
        return self


def write(path: Path, records: list[Record]) -> None:
    """The records of one stage."""
    write_json(path, [record.model_dump() for record in records])


def read(path: Path) -> list[Record]:
    """The inverse; refuses what could not have been written.

    Raises:
        ValueError: the file is not a list of legal records (pydantic says where).
    """
    try:
        return [Record.model_validate(item) for item in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({' '.join(str(error).split())[:300]}); `make bench` makes it anew"
        ) from None


def bench_path(results: Path, implementation: str, grid: str) -> Path:
    """Where a bench stage writes."""
    return results / "bench" / f"{implementation}-{grid}.json"


def check_path(results: Path, implementation: str) -> Path:
    """Where a check stage writes its figures; its verdict stands beside it."""
    return results / "check" / f"{implementation}.json"


def verdict_path(results: Path, implementation: str) -> Path:
    """The verdict without any figure, so that a last digit that moves re-runs no measurement."""
    return results / "check" / f"{implementation}.verdict.json"
