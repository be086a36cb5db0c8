"""A share of trials with its exact interval, as Clopper and Pearson give it."""

from __future__ import annotations

import math
from collections.abc import Callable

from bench.stats import LEVEL, Estimate

_HALVINGS = 60


def share(found: int, trials: int) -> Estimate:
    """`found` of `trials`, in per cent, with the interval that misses the true rate at most once in twenty.

    Raises:
        ValueError: no trials, or more found than tried.
    """
    if not 0 <= found <= trials or not trials:
        raise ValueError(f"{found} of {trials} is no share")
    tail = (1 - LEVEL) / 2
    low = 0.0 if found == 0 else _where(lambda rate: 1 - _at_most(found - 1, trials, rate) >= tail)
    high = 1.0 if found == trials else _where(lambda rate: _at_most(found, trials, rate) <= tail)
    return Estimate(100 * found / trials, 100 * low, 100 * high)


def _at_most(found: int, trials: int, rate: float) -> float:
    """Probability of so many or fewer, were this the rate; 0 < rate < 1."""
    log = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(rate) + (trials - k) * math.log1p(-rate)
        for k in range(found + 1)
    ]  # fmt: skip
    return math.fsum(math.exp(x) for x in log)


def _where(becomes: Callable[[float], bool]) -> float:
    """The rate from which on a condition is true."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if becomes(middle) else (middle, high)
    return high
