"""bench.stats: estimates and their intervals, on samples whose truth is known."""

import numpy as np
import pytest

from bench import stats


def test_the_value_is_the_median_of_the_processes_medians():
    assert stats.estimate([[1.0, 2.0, 900.0], [4.0, 4.0], [7.0, 6.0, 8.0]]).value == 4.0


def test_an_outlier_in_every_process_moves_nothing():
    found = stats.estimate([[1.0] * 9 + [1000.0]] * 3)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_processes_that_agree_have_a_tiny_interval():
    samples = list(np.random.default_rng(0).normal(10.0, 0.01, 50))
    found = stats.estimate([samples] * 3)
    assert found.low <= found.value <= found.high
    assert 0 < found.high - found.low < 0.02


def test_processes_that_differ_have_an_interval_that_covers_them():
    found = stats.estimate([[1.0] * 20, [2.0] * 20, [3.0] * 20])
    assert (found.value, found.low, found.high) == (2.0, 1.0, 3.0)


def test_many_samples_of_few_processes_do_not_hide_that_the_processes_differ():
    rng = np.random.default_rng(0)
    found = stats.estimate([list(rng.normal(mean, 0.01, 1000)) for mean in (1.0, 2.0, 3.0)])
    assert found.high - found.low > 1.5


def test_the_same_samples_give_the_same_interval():
    processes = [list(np.random.default_rng(n).normal(5.0, 1.0, 20)) for n in range(3)]
    assert stats.estimate(processes) == stats.estimate(processes)


@pytest.mark.parametrize("processes", [[], [[]], [[1.0], []]])
def test_no_samples_give_no_estimate(processes):
    with pytest.raises(ValueError, match="no samples to estimate from"):
        stats.estimate(processes)


def test_the_interval_covers_the_truth_about_as_often_as_it_should(monkeypatch):
    """Processes of mean 10 +- 0.5, samples +- 0.3 around them; the interval is wanted neither blind nor endless."""
    monkeypatch.setattr(stats, "RESAMPLES", 200)
    rng = np.random.default_rng(2307)
    found = [stats.estimate([list(rng.normal(rng.normal(10, 0.5), 0.3, 15)) for _ in range(8)]) for _ in range(60)]
    covered = sum(one.low <= 10 <= one.high for one in found)
    assert covered >= 48  # 80 %: few processes make a percentile interval a little short
    widths = [one.high - one.low for one in found]
    assert 0.3 < float(np.median(widths)) < 1.6


@pytest.mark.parametrize(
    ("values", "mean"), [([3.0], 3.0), ([2.0, 8.0], 4.0), ([0.5, 2.0], 1.0), ([1.0, 10.0, 100.0], 10.0)]
)
def test_the_geometric_mean_is_the_one_of_ratios(values, mean):
    assert stats.geometric_mean(values) == pytest.approx(mean)
