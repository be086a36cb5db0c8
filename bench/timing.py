"""Samples in pairs: each of the implementation is followed, or preceded, by one of its reference.

A sample is as many calls as last `sample_ms`; which of the pair comes first is drawn at random. With
several ranks, `agree` makes rank 0's decision everyone's: a rank deciding alone would hang the others.
"""

from __future__ import annotations

import gc
import random
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.spent import Spent

Sample = Callable[[int], float]  # calls -> milliseconds for all of them
Agree = Callable[[float], float]
ClockShare = Callable[[], float | None]  # of the device's default clock; of the slowest rank's
LEAST_CLOCK = 0.75


class Throttled(Exception):
    """The device's clock stays too low for figures; the message says how low."""


@dataclass
class Series:
    """All samples of one process, in the order in which they were taken; index i is one pair.

    samples_ms, reference_ms: per call. wall_ms: of the whole sample, with what is done around its calls to judge them;
    so are cpu_per_wall: processor time over wall time (of all threads); preempted: involuntary context switches.
    steal_ms, stalled_ms: time that the hypervisor took, and that some task waited for a processor; None where the
    machine does not tell. clock_share: the device's clock after the sample, as a share of its default. hot_ms: where
    the device has a cache to flush, a sample without that (samples_ms are cold). throttled_ms: samples taken at less
    than 75 % of the default clock, which are in no figure.
    """

    calls: int = 0
    reference_calls: int = 0
    samples_ms: list[float] = field(default_factory=list)
    reference_ms: list[float] = field(default_factory=list)
    reference_first: list[bool] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    cpu_per_wall: list[float] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)
    steal_ms: list[float | None] = field(default_factory=list)
    stalled_ms: list[float | None] = field(default_factory=list)
    clock_share: list[float | None] = field(default_factory=list)
    hot_ms: list[float] = field(default_factory=list)
    throttled_ms: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; with `outliers`, the places in samples_ms that Tukey's outer fences leave out. All stay in."""
        return asdict(self) | {"outliers": outliers(self.samples_ms)}


def outliers(values: list[float]) -> list[int]:
    """Places of values more than 3 interquartile ranges beyond the quartiles (Tukey 1977, "far out")."""
    if len(values) < 2:
        return []
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    reach = 3 * (upper - lower)
    return [i for i, x in enumerate(values) if not lower - reach <= x <= upper + reach]


def warm_up(sample: Sample, protocol: dict[str, Any], agree: Agree) -> int:
    """Run for at least `warmup_ms` and `warmup_calls`; how many calls then make a sample of `sample_ms`."""
    start, times = time.perf_counter(), list[float]()
    while agree(len(times) < protocol["warmup_calls"] or (time.perf_counter() - start) * 1e3 < protocol["warmup_ms"]):
        times.append(sample(1))
    fastest = max(min(times), 1e-3)
    return int(agree(max(1, -(-protocol["sample_ms"] // fastest))))


def sample_pairs(
    sample: Sample,
    reference: Sample,
    protocol: dict[str, Any],
    seed: int,
    agree: Agree = lambda x: x,
    *,
    hot: Sample | None = None,
    clock_share: ClockShare = lambda: None,
    spent: Spent | None = None,
) -> Series:
    """Warm both up and take pairs until there are enough or the budget is spent.

    hot: takes a sample of the other kind after each pair. clock_share: read after each sample; of too low a clock the
    pair is taken anew. spent: told what was warm-up.

    Raises:
        Throttled: the clock was too low as often as samples are wanted.
    """
    with (spent or Spent()).during("warm_up"):
        series = Series(calls=warm_up(sample, protocol, agree), reference_calls=warm_up(reference, protocol, agree))
    rng, start = random.Random(seed), time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        for taken in range(protocol["samples"]):
            over = time.perf_counter() - start >= protocol["budget_s"]
            if agree(taken >= protocol["min_samples"] and over):
                break
            reference_first = rng.random() < 0.5
            while not _take_pair(series, sample, reference, clock_share, agree, reference_first=reference_first):
                if len(series.throttled_ms) >= protocol["samples"]:
                    raise Throttled(_too_low(series, clock_share()))
            if hot:
                series.hot_ms.append(hot(series.calls) / series.calls)
    finally:
        gc.enable()
    return series


def _take_pair(
    series: Series, sample: Sample, reference: Sample, clock_share: ClockShare, agree: Agree, *, reference_first: bool
) -> bool:
    """Whether the pair counts: False where the device's clock was too low."""

    def of_reference() -> float:
        return reference(series.reference_calls) / series.reference_calls

    reference_ms = of_reference() if reference_first else 0.0
    before = _Noise.now()
    milliseconds = sample(series.calls) / series.calls
    noise, clock = _Noise.now(), clock_share()
    if not reference_first:
        reference_ms = of_reference()
    if agree(clock is not None and clock < LEAST_CLOCK):
        series.throttled_ms.append(milliseconds)
        return False
    wall_s = max(noise.wall_s - before.wall_s, 1e-9)
    series.reference_ms.append(reference_ms)
    series.reference_first.append(reference_first)
    series.samples_ms.append(milliseconds)
    series.wall_ms.append(round(wall_s * 1e3, 3))
    series.cpu_per_wall.append(round((noise.cpu_s - before.cpu_s) / wall_s, 3))
    series.preempted.append(noise.preempted - before.preempted)
    series.steal_ms.append(_difference(noise.steal_ms, before.steal_ms))
    series.stalled_ms.append(_difference(noise.stalled_ms, before.stalled_ms))
    series.clock_share.append(None if clock is None else round(clock, 3))
    return True


def _too_low(series: Series, clock: float | None) -> str:
    low = f"{100 * clock:.0f} %" if clock is not None else "below 75 %"
    return (
        f"throttled: after {len(series.throttled_ms)} samples the device's clock is still at {low} of its default, "
        f"allowed: at least {100 * LEAST_CLOCK:.0f} %"
    )


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
