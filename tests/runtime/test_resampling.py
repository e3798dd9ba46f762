import itertools

import numpy as np
import pytest
import scipy.stats

from jaxrl_align.runtime.resampling import (
    bootstrap,
    bootstrap_mean,
    improvement_probability,
    share_interval,
    win_rate,
)
from jaxrl_align.runtime.statistics import wilson_interval

RNG = np.random.default_rng(0)
X = RNG.exponential(size=40)
GROUPS = np.repeat(["b", "a", "d", "c"], [10, 2, 20, 8])


def test_a_bootstrap_of_three_items_by_enumeration():
    """All 27 draws of (0, 1, 5) are alike; the percentiles of 10,000 are among their means."""
    means = np.sort([np.mean(d) for d in itertools.product([0.0, 1.0, 5.0], repeat=3)])
    got = bootstrap(np.mean, [0.0, 1.0, 5.0])
    assert got.value == 2.0 and got.kind == "bootstrap"
    assert (got.low, got.high) == (means[0], means[-1])  # each has 1 / 27 = 3.7% of the draws
    assert bootstrap_mean([0.0, 1.0, 5.0]) == got


def test_a_bootstrap_of_the_mean_agrees_with_scipy():
    found = scipy.stats.bootstrap((X,), np.mean, method="percentile", n_resamples=10_000, rng=0)
    for got in (bootstrap_mean(X), bootstrap(np.mean, X, draws=4000)):
        np.testing.assert_allclose(got[1:3], found.confidence_interval, atol=0.03)
        assert got.value == X.mean()
    median = scipy.stats.bootstrap((X,), np.median, method="percentile", n_resamples=10_000, rng=0)
    np.testing.assert_allclose(
        bootstrap(np.median, X, draws=4000)[1:3], median.confidence_interval, atol=0.05
    )


def test_arrays_are_drawn_in_pairs():
    """A constant difference has no interval's width; drawn apart it would be as wide as X."""
    got = bootstrap(lambda a, b: np.mean(a - b), X, X - 0.25, draws=50)
    np.testing.assert_allclose(got[:3], 0.25)


def test_groups_are_drawn_whole_and_weigh_by_their_items():
    size, drawn = {"a": 2, "b": 10, "c": 8, "d": 20}, set()

    def mean(x, group):
        counts = zip(*np.unique(group, return_counts=True), strict=True)
        drawn.update((name, count / size[name]) for name, count in counts)
        return x.mean()

    got = bootstrap(mean, X, GROUPS, groups=GROUPS, draws=300)
    assert {times for _, times in drawn} == {1, 2, 3, 4} and {name for name, _ in drawn} == set(size)
    fast = bootstrap_mean(X, GROUPS, draws=300)
    np.testing.assert_allclose(fast[:3], got[:3])
    np.testing.assert_array_equal(fast, bootstrap_mean(X[::-1], GROUPS[::-1], draws=300))


def test_the_same_seed_draws_the_same_and_pieces_change_nothing(monkeypatch):
    whole = bootstrap_mean(X, seed=3)
    assert whole == bootstrap_mean(X, seed=3) != bootstrap_mean(X, seed=4)
    monkeypatch.setattr("jaxrl_align.runtime.resampling._AT_A_TIME", 40 * 7)
    assert bootstrap_mean(X, seed=3) == whole


def test_two_units_give_their_range_and_one_gives_none():
    got = bootstrap_mean([1.0, 1.0, 4.0], ["x", "x", "y"])
    assert got == (2.0, 1.0, 4.0, "range")
    assert bootstrap(np.mean, [1.0, 4.0], draws=100) == (2.5, 1.0, 4.0, "range")
    one = bootstrap_mean([1.0, 3.0], ["x", "x"])
    assert one.value == 2.0 and np.isnan(one.low) and np.isnan(one.high) and one.kind == "none"


def test_draws_that_leave_a_statistic_undefined_do_not_count():
    ratio = lambda x: x.mean() if x.max() > 0 else np.nan
    got = bootstrap(ratio, [0.0, 0.0, 1.0])
    assert got[:3] == (pytest.approx(1 / 3), pytest.approx(1 / 3), 1.0)  # 8 of 27 draws have no hit
    assert bootstrap(lambda x: np.nan, X, draws=3).kind == "none"


def test_a_share_is_wilsons_or_its_groups():
    hits = (X > 1).astype(float)
    assert share_interval(hits) == wilson_interval(int(hits.sum()), 40)
    assert share_interval(hits, GROUPS) == bootstrap_mean(hits, GROUPS)
    together = share_interval(np.repeat([1.0, 0.0, 1.0, 1.0], 10), np.repeat(range(4), 10))
    assert together.high - together.low > 2 * np.subtract(*share_interval(hits)[2:0:-1])
    assert np.isnan(share_interval([]).value)
    with pytest.raises(ValueError, match="from 0 to 1"):
        share_interval([0.0, 1.5])


def test_a_win_is_one_and_a_tie_half():
    got = win_rate([2.0, 1.0, 3.0, -1.0], [1.0, 1.0, 3.0, 5.0])
    assert got == wilson_interval(2.0, 4) and got.value == 0.5
    for second in ([1.0], [1.0, np.nan]):
        with pytest.raises(ValueError, match="none nan"):
            win_rate([1.0, 2.0], second)


def test_the_probability_of_improvement_is_mann_and_whitneys():
    """Per task U / (n m), ties half; then the mean over tasks."""
    x, y = RNG.integers(0, 5, (6, 3)).astype(float) + [0, 1, 2], RNG.integers(0, 5, (8, 3)).astype(float)
    each = [scipy.stats.mannwhitneyu(a, b).statistic / 48 for a, b in zip(x.T, y.T, strict=True)]
    got = improvement_probability(x, y)
    assert got.value == pytest.approx(np.mean(each)) and 0 <= got.low < got.value < got.high <= 1
    np.testing.assert_allclose(improvement_probability(y, x).value, 1 - got.value)
    assert improvement_probability([1.0, 2.0], [1.0, 0.0, 2.0]).value == pytest.approx(4 / 6)
    assert improvement_probability([5.0] * 3, [1.0] * 4)[:3] == (1.0, 1.0, 1.0)


def test_runs_are_drawn_within_their_task():
    """All runs of a task alike: no width, though the tasks differ; and scipy's width for one task."""
    x, y = np.tile([1.0, 0.0], (5, 1)), np.tile([0.0, 1.0], (4, 1))
    assert improvement_probability(x, y)[:3] == (0.5, 0.5, 0.5)
    share = lambda a, b, axis: (0.5 + 0.5 * np.sign(a[..., :, None] - b[..., None, :])).mean((-2, -1))
    a, b = X[:9], X[9:21] + 0.3
    found = scipy.stats.bootstrap((a, b), share, method="percentile", vectorized=True, rng=0)
    np.testing.assert_allclose(improvement_probability(a, b)[1:3], found.confidence_interval, atol=0.02)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: bootstrap_mean([]), "at least one item"),
        (lambda: bootstrap_mean(np.ones((2, 2))), r"\[N\], got shape \(2, 2\)"),
        (lambda: bootstrap_mean(X, [1, 2]), r"groups must be one an item, \[40\], got shape \(2,\)"),
        (lambda: bootstrap(np.mean, X, [1.0]), r"one entry an item, \[N, ...\], got \[\(40,\), \(1,\)\]"),
        (lambda: bootstrap(np.mean, 3.0), "one entry an item"),
        (lambda: improvement_probability(np.ones((2, 3)), np.ones((2, 4))), "of the same tasks, got"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_infinite_numbers_are_compared_as_others():
    assert win_rate([-np.inf, 0.0, np.inf, 1.0], [-np.inf, -np.inf, np.inf, np.inf]).value == 0.5
