"""Estimates with intervals: median of process medians, bootstrapped over processes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval, in the unit of the samples."""

    value: float
    low: float
    high: float


def estimate(processes: list[list[float]], seed: int = 0) -> Estimate:
    """Median of the processes' medians, with a percentile interval.

    Samples of one process share its fate (placement, memory layout), so processes are drawn with
    replacement first, then samples within each. With 3 processes the interval is close to their range.

    Raises:
        ValueError: no process, or one without samples.
    """
    if not processes or not all(processes):
        raise ValueError("no samples to estimate from")
    medians = np.array([np.median(samples) for samples in processes])
    rng = np.random.default_rng(seed)
    drawn = [
        np.median(
            [
                np.median(rng.choice(processes[i], len(processes[i])))
                for i in rng.integers(len(processes), size=len(processes))
            ]
        )
        for _ in range(RESAMPLES)
    ]
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    value = float(np.median(medians))
    return Estimate(value, min(float(low), value), max(float(high), value))


def geometric_mean(values: list[float]) -> float:
    """The mean that ratios have."""
    return float(np.exp(np.mean(np.log(values))))
