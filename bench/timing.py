"""Samples in pairs: each of the implementation is followed, or preceded, by one of its reference.

A sample is as many calls as last `sample_ms`; which of the pair comes first is drawn at random. With
several ranks, `agree` makes rank 0's decision everyone's: a rank deciding alone would hang the others.
"""

from __future__ import annotations

import gc
import random
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

Sample = Callable[[int], float]  # calls -> milliseconds for all of them
Agree = Callable[[float], float]


@dataclass
class Series:
    """All samples of one process, in the order in which they were taken; index i is one pair.

    samples_ms, reference_ms: per call. cpu_per_wall: processor time over wall time during the sample
    (of all threads). preempted: involuntary context switches. steal_ms, stalled_ms: time that the
    hypervisor took, and that some task waited for a processor; None where the machine does not tell.
    """

    calls: int = 0
    reference_calls: int = 0
    samples_ms: list[float] = field(default_factory=list)
    reference_ms: list[float] = field(default_factory=list)
    reference_first: list[bool] = field(default_factory=list)
    cpu_per_wall: list[float] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)
    steal_ms: list[float | None] = field(default_factory=list)
    stalled_ms: list[float | None] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def warm_up(sample: Sample, protocol: dict[str, Any], agree: Agree) -> int:
    """Run for at least `warmup_ms` and `warmup_calls`; how many calls then make a sample of `sample_ms`."""
    start, times = time.perf_counter(), list[float]()
    while agree(len(times) < protocol["warmup_calls"] or (time.perf_counter() - start) * 1e3 < protocol["warmup_ms"]):
        times.append(sample(1))
    fastest = max(min(times), 1e-3)
    return int(agree(max(1, -(-protocol["sample_ms"] // fastest))))


def sample_pairs(
    sample: Sample, reference: Sample, protocol: dict[str, Any], seed: int, agree: Agree = lambda x: x
) -> Series:
    """Warm both up and take pairs until there are enough or the budget is spent."""
    series = Series(calls=warm_up(sample, protocol, agree), reference_calls=warm_up(reference, protocol, agree))
    rng, start = random.Random(seed), time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        for taken in range(protocol["samples"]):
            spent = time.perf_counter() - start >= protocol["budget_s"]
            if agree(taken >= protocol["min_samples"] and spent):
                break
            _take_pair(series, sample, reference, reference_first=rng.random() < 0.5)
    finally:
        gc.enable()
    return series


def _take_pair(series: Series, sample: Sample, reference: Sample, *, reference_first: bool) -> None:
    if reference_first:
        series.reference_ms.append(reference(series.reference_calls) / series.reference_calls)
    before = _Noise.now()
    milliseconds = sample(series.calls)
    noise = _Noise.now()
    if not reference_first:
        series.reference_ms.append(reference(series.reference_calls) / series.reference_calls)
    wall_s = max(noise.wall_s - before.wall_s, 1e-9)
    series.reference_first.append(reference_first)
    series.samples_ms.append(milliseconds / series.calls)
    series.cpu_per_wall.append(round((noise.cpu_s - before.cpu_s) / wall_s, 3))
    series.preempted.append(noise.preempted - before.preempted)
    series.steal_ms.append(_difference(noise.steal_ms, before.steal_ms))
    series.stalled_ms.append(_difference(noise.stalled_ms, before.stalled_ms))


@dataclass(frozen=True)
class _Noise:
    """What disturbs a sample: counters that are read before and after it, outside the timed region."""

    wall_s: float
    cpu_s: float
    preempted: int
    steal_ms: float | None
    stalled_ms: float | None

    @classmethod
    def now(cls) -> _Noise:
        return cls(
            wall_s=time.perf_counter(),
            cpu_s=time.process_time(),
            preempted=resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
            steal_ms=_steal_ms(),
            stalled_ms=_stalled_ms(),
        )


def _steal_ms() -> float | None:
    try:
        with open("/proc/stat", encoding="ascii") as file:
            return float(file.readline().split()[8]) * 10  # in ticks of 1/100 s
    except (OSError, IndexError):
        return None


def _stalled_ms() -> float | None:
    try:
        with open("/proc/pressure/cpu", encoding="ascii") as file:
            return float(file.readline().split("total=")[1]) / 1e3
    except (OSError, IndexError):
        return None


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else round(after - before, 3)
