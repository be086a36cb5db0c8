"""The record of a cell. A record with figures that is not ok, or a status without a reason, cannot be made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bench.files import read_json, write_json

Status = Literal["ok", "incorrect", "unsupported", "out_of_memory", "timeout", "crashed", "not_measured"]
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

    relative_time: to the reference, paired, same process. For rings: to the reference in one process on
    all cores; `efficiency` is its inverse. peak_mib is net of inputs. tflops and throughput follow from
    time_ms. first_call_ms is the median over processes. hot_ms: without the cache flush that time_ms has before
    each call, where a device has such a cache.
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


class Record(_Frozen):
    """One cell, as measured (or not) on one machine."""

    schema_version: Literal[1] = 1
    implementation: str
    family: str
    grid: str
    workload: dict[str, Any]
    world_size: int
    threads: int
    oversubscribed: bool
    reference: str
    status: Status
    reason: str | None
    backend: str | None = None
    not_compared: str | None = None
    max_abs_error: dict[str, float] = {}
    over_budget: dict[str, float] = {}
    sampled: str | None = None  # what of its results was judged, where not everything was
    figures: Figures | None = None
    processes: list[dict[str, Any]] = []
    state: dict[str, Any] = {}
    measured_at: str | None = None

    @model_validator(mode="after")
    def _legal(self) -> Record:
        if (self.status == "ok") != (self.figures is not None):
            raise ValueError(f"figures exist only with status ok, and always then; this is {self.status}")
        if (self.status == "ok") != (self.reason is None):
            raise ValueError(f"every status but ok has a reason, and ok has none; this is {self.status}")
        if self.reason is not None and ("\n" in self.reason or not self.reason.strip()):
            raise ValueError("a reason is one line of words")
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
        return [Record.model_validate(item) for item in read_json(path)]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({' '.join(str(error).split())[:300]}); `dvc repro -f` makes it anew"
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
