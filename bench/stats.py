"""Estimates with intervals: median of process medians, bootstrapped over processes; signed ranks of pairs, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval (95 % where nothing else is said), in the unit of the samples."""

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
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(drawn(processes, np.random.default_rng(seed)), [tail, 100 - tail])
    value = middle(processes)
    return Estimate(value, min(float(low), value), max(float(high), value))


def middle(processes: list[list[float]]) -> float:
    """Median of the processes' medians."""
    return float(np.median([np.median(samples) for samples in processes]))


def drawn(processes: list[list[float]], rng: np.random.Generator) -> NDArray[np.float64]:
    """RESAMPLES of that median, all draws at once: processes with replacement, then samples within each."""
    chosen = rng.integers(len(processes), size=(RESAMPLES, len(processes)))
    medians = np.empty(chosen.shape)
    for number, samples in enumerate(processes):
        here = chosen == number
        again = rng.choice(np.array(samples), size=(int(here.sum()), len(samples)))
        medians[here] = np.median(again, axis=1)
    return np.asarray(np.median(medians, axis=1))


def geometric_mean(values: list[float]) -> float:
    """The mean that ratios have."""
    return float(np.exp(np.mean(np.log(values))))


def hodges_lehmann(values: list[float], alpha: float) -> Estimate:
    """Median of all Walsh averages (x_i + x_j) / 2, i <= j, with the interval of the exact signed-rank test.

    alpha: the probability that the interval misses the centre of a symmetric distribution, at most. Below
    2 / 2 ** n no finite interval has it: the interval is then endless.

    Raises:
        ValueError: no values.
    """
    walsh = _walsh_averages(values)
    at_most = np.cumsum(signed_rank_distribution(len(values)))
    dropped = int(np.searchsorted(at_most, alpha / 2, side="right"))  # how many averages each end may lose, plus one
    value = float(np.median(walsh))
    if not dropped:
        return Estimate(value, -np.inf, np.inf)
    return Estimate(value, float(walsh[dropped - 1]), float(walsh[-dropped]))


def signed_rank_p(values: list[float]) -> float:
    """Exact probability, were the centre 0 or below, of signed ranks as high as these: small speaks for above 0.

    Raises:
        ValueError: no values.
    """
    reached = int((_walsh_averages(values) > 0).sum())
    return float(signed_rank_distribution(len(values))[reached:].sum())


@cache
def signed_rank_distribution(n: int) -> NDArray[np.float64]:
    """Of n values symmetric about 0: the probability of each sum of the ranks above it, 0 to n (n + 1) / 2.

    Each rank is in the sum or not, one after the other; exact up to n = 53, to rounding beyond.
    """
    probability = np.zeros(n * (n + 1) // 2 + 1)
    probability[0] = 1.0
    for rank in range(1, n + 1):
        without = probability / 2
        probability = without.copy()
        probability[rank:] += without[:-rank]
    probability.setflags(write=False)
    return probability


def spent_at(looks: tuple[int, ...], alpha: float) -> list[float]:
    """What each look at so many values may spend of alpha; together they spend it.

    By the spending function of O'Brien and Fleming, 2 - 2 Phi(z / sqrt(share of the values)), but at each look at
    least what its exact test needs to say anything, 2 / 2 ** n; the last look has the rest.
    """
    normal, spent = NormalDist(), list[float]()
    z = normal.inv_cdf(1 - alpha / 2)
    for n in looks[:-1]:
        allowed = 2 - 2 * normal.cdf(z / (n / looks[-1]) ** 0.5)
        spent.append(max(allowed - sum(spent), 2.0 ** (1 - n)))
    return [*spent, alpha - sum(spent)]


def survivors(p_values: list[float], rate: float) -> list[bool]:
    """Which findings stand where at most that share of them shall be false (Benjamini and Hochberg)."""
    ordered = sorted(p_values)
    passed = [p for rank, p in enumerate(ordered, 1) if p <= rate * rank / len(ordered)]
    return [bool(passed) and p <= passed[-1] for p in p_values]


def _walsh_averages(values: list[float]) -> NDArray[np.float64]:
    if not values:
        raise ValueError("no values to estimate from")
    x = np.asarray(values, dtype=np.float64)
    one, other = np.triu_indices(len(x))
    return np.sort((x[one] + x[other]) / 2)
