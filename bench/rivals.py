"""What other tools say of the samples of a duel: their own code, fed as many samples and processes as they take.

They would take base and head one after the other; here they get samples taken in turns, which can only help them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from bench.duel_pairs import Pair

Said = Literal["slower", "faster", "no difference", "not installed"]

PYPERF_VALUES = 3  # a process; pyperf takes them of 20 processes, we of those that the duel has
ASV_ROUNDS, ASV_REPEAT, ASV_FACTOR = 2, 5, 1.1
COMPARE_FAIL = "mean:5%"
PACKAGES = {"pyperf": "pyperf", "asv": "asv", "pytest-benchmark": "pytest-benchmark", "torch": "torch"}


@dataclass(frozen=True)
class Samples:
    """Milliseconds a call of each slice, in order, by process: of base and of head."""

    base: list[list[float]]
    head: list[list[float]]


def verdicts(pairs: Sequence[Pair]) -> dict[str, Said]:
    """What each of them says of these pairs' wall times."""
    samples = Samples([_of("A", pair) for pair in pairs], [_of("B", pair) for pair in pairs])
    return {name: _said(rule, samples) for name, rule in _RULES.items()}


def versions() -> dict[str, str]:
    """Of the packages whose rules these are."""
    found = {}
    for name, package in PACKAGES.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _of(letter: str, pair: Pair) -> list[float]:
    return [ms for order, wall, _ in pair.blocks for one, ms in zip(order, wall, strict=True) if one == letter]


def _said(rule: Callable[[Samples], tuple[bool, bool]], samples: Samples) -> Said:
    try:
        slower, faster = rule(samples)
    except ModuleNotFoundError:
        return "not installed"
    return "slower" if slower else "faster" if faster else "no difference"


def _pyperf(samples: Samples) -> tuple[bool, bool]:
    """`pyperf compare_to`: a t-test at 95 % over the values of all processes."""
    from pyperf import Benchmark, Run
    from pyperf._compare import CompareData, CompareResult

    def benchmark(name: str, processes: list[list[float]]) -> CompareData:
        about = {"name": name, "loops": 1}
        runs = [Run(_values(slices), metadata=about, collect_metadata=False) for slices in processes]
        return CompareData(name, Benchmark(runs))

    found = CompareResult(benchmark("base", samples.base), benchmark("head", samples.head))
    return found.significant and found.norm_mean > 1, found.significant and found.norm_mean < 1


def _values(slices: list[float]) -> list[float]:
    """Seconds a call: three values of a process, each the mean of a third of its slices."""
    size = max(1, len(slices) // PYPERF_VALUES)
    thirds = [slices[at : at + size] for at in range(0, size * PYPERF_VALUES, size)]
    return [statistics.fmean(third) / 1e3 for third in thirds if third]


def _asv(samples: Samples) -> tuple[bool, bool]:
    """`asv compare`, factor 1.1: a Mann-Whitney test at 0.002 over 5 samples of each of 2 processes."""
    from asv.commands.compare import _is_result_better
    from asv_runner.statistics import compute_stats

    def result(processes: list[list[float]]) -> tuple[float, tuple[dict[str, float], list[float]]]:
        taken = [ms for slices in processes[:ASV_ROUNDS] for ms in slices[:ASV_REPEAT]]
        value, stats = compute_stats(taken, 1)
        return value, (stats, taken)

    base, head = result(samples.base), result(samples.head)
    slower, faster = (
        bool(_is_result_better(one[0], other[0], one[1], other[1], ASV_FACTOR))
        for one, other in ((base, head), (head, base))
    )
    return slower, faster


def _pytest_benchmark(samples: Samples) -> tuple[bool, bool]:
    """`--benchmark-compare-fail=mean:5%`, which never calls anything faster, over one process."""
    from pytest_benchmark.stats import Stats
    from pytest_benchmark.utils import parse_compare_fail

    def stats(slices: list[float]) -> dict[str, float]:
        made = Stats()
        for ms in slices:
            made.update(ms / 1e3)
        return dict(made.as_dict())

    failed = parse_compare_fail(COMPARE_FAIL).fails(stats(samples.head[0]), stats(samples.base[0]))
    return failed is not None, False


def _torch(samples: Samples) -> tuple[bool, bool]:
    """`Compare` with `trim_significant_figures`: the medians of one process that it prints differ, without a warning.

    torch calls nothing faster itself: it prints so many figures as it holds significant, and a warning where the
    quartiles lie more than a tenth of the median apart.
    """
    from torch.utils.benchmark import Measurement
    from torch.utils.benchmark.utils.common import TaskSpec, trim_sigfig

    def measurement(slices: list[float]) -> Measurement:
        return Measurement(1, [ms / 1e3 for ms in slices], TaskSpec("call()", "pass"))

    both = [measurement(processes[0]) for processes in (samples.base, samples.head)]
    if any(one.has_warnings for one in both):
        return False, False
    figures = min(one.significant_figures for one in both)
    base, head = (trim_sigfig(one.median, figures) for one in both)
    return head > base, head < base


_RULES: dict[str, Callable[[Samples], tuple[bool, bool]]] = {
    "pyperf": _pyperf,
    "asv": _asv,
    "pytest-benchmark": _pytest_benchmark,
    "torch": _torch,
}
