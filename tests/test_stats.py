"""bench.stats: estimates and their intervals, on samples whose truth is known."""

import itertools

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


def all_signs(n):
    """Every assignment of signs to n values, one a row."""
    return np.array(list(itertools.product((0, 1), repeat=n)))


@pytest.mark.parametrize("n", range(1, 13))
def test_the_distribution_of_signed_ranks_is_that_of_all_signs(n):
    sums = all_signs(n) @ np.arange(1, n + 1)
    counted = np.bincount(sums) / 2**n
    assert stats.signed_rank_distribution(n).tolist() == counted.tolist()


@pytest.mark.parametrize("n", [1, 5, 8, 12])
def test_the_p_value_is_the_share_of_signs_with_ranks_as_high(n):
    values = np.random.default_rng(n).normal(0.5, 1.0, n)
    ranks = np.argsort(np.argsort(abs(values))) + 1
    share = np.mean(all_signs(n) @ ranks >= ranks[values > 0].sum())
    assert stats.signed_rank_p(list(values)) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("n", [6, 8, 12])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.32])
def test_the_interval_holds_the_centres_that_the_exact_test_does_not_reject(n, alpha):
    values = list(np.random.default_rng(n).normal(3.0, 1.0, n))
    found = stats.hodges_lehmann(values, alpha)

    def rejected(centre):
        moved = [x - centre for x in values]
        return min(stats.signed_rank_p(moved), stats.signed_rank_p([-x for x in moved])) <= alpha / 2

    assert found.low <= found.value <= found.high
    tiny = 1e-9
    assert [rejected(c) for c in (found.low - tiny, found.low + tiny, found.value)] == [True, False, False]
    assert [rejected(c) for c in (found.high - tiny, found.high + tiny)] == [False, True]


def test_the_least_that_8_values_can_say_is_their_range():
    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.0, 6.0, 5.0]
    found = stats.hodges_lehmann(values, 2 / 2**8)
    assert (found.low, found.high) == (1.0, 9.0)
    endless = stats.hodges_lehmann(values, 1.9 / 2**8)
    assert (endless.low, endless.value, endless.high) == (-np.inf, found.value, np.inf)


@pytest.mark.parametrize("nothing", [lambda: stats.hodges_lehmann([], 0.05), lambda: stats.signed_rank_p([])])
def test_no_values_give_no_signed_ranks(nothing):
    with pytest.raises(ValueError, match="no values to estimate from"):
        nothing()


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_the_exact_interval_misses_the_truth_as_often_as_it_may(alpha):
    rng, n, draws = np.random.default_rng(2307), 16, 4000
    found = [stats.hodges_lehmann(list(rng.normal(1.0, 2.0, n)), alpha) for _ in range(draws)]
    missed = sum(not one.low <= 1.0 <= one.high for one in found) / draws
    assert missed == pytest.approx(alpha, rel=0.4)  # the exact level of 16 values is a little below alpha


@pytest.mark.parametrize("looks", [(16,), (8, 16), (8, 12, 16), (12, 16), (8, 12, 16, 24, 32, 48, 64)])
def test_looks_together_spend_alpha_and_each_can_say_something(looks):
    spent = stats.spent_at(looks, 0.05)
    assert sum(spent) == pytest.approx(0.05)
    assert [n for n, alpha in zip(looks, spent, strict=True) if alpha < 2 / 2**n] == []
    assert spent[-1] == max(spent)


def test_early_looks_spend_little():
    first, second, last = stats.spent_at((8, 12, 16), 0.05)
    assert first == 2 / 2**8
    assert first + second == pytest.approx(0.0236, abs=1e-4)  # O'Brien and Fleming at 3/4 of the values
    assert last == pytest.approx(0.05 - 0.0236, abs=1e-4)


@pytest.mark.parametrize(
    ("p_values", "stand"),
    [
        ([], []),
        ([0.05], [True]),
        ([0.051], [False]),
        ([0.01, 0.04, 0.03, 0.5], [True, False, False, False]),  # against 0.0125, 0.025, 0.0375
        ([0.012, 0.037, 0.02, 0.5], [True, True, True, False]),
        ([0.03, 0.04, 0.05], [True, True, True]),  # the last is small enough, so all below it are
    ],
)
def test_findings_stand_among_others_as_benjamini_and_hochberg_say(p_values, stand):
    assert stats.survivors(p_values, 0.05) == stand
