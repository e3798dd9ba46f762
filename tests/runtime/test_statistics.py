import math

import numpy as np
import pytest
import scipy.stats

from jaxrl_align.runtime.statistics import (
    Interval,
    crossed_interval,
    fell_by_half,
    interquartile_mean,
    mcnemar_test,
    mean_interval,
    paired_interval,
    ratio_interval,
    t_interval,
    t_quantile,
    wilson_interval,
)


def test_t_quantile_against_scipy():
    for degrees in [*range(1, 40), 99, 100, 1000]:
        assert t_quantile(degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=1e-9)


def test_mean_interval_by_hand():
    # mean 2.5, s^2 = (2.25 + 0.25 + 0.25 + 2.25) / 3 = 5 / 3, t_{0.975, 3} = 3.18245
    mean, half_width = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert half_width == pytest.approx(3.18245 * math.sqrt(5 / 3) / 2, rel=1e-5)


def test_mean_interval_axes_and_one_member():
    x = np.random.default_rng(0).normal(size=(5, 3))
    for a, b in zip(mean_interval(x, axis=1), mean_interval(x.T, axis=0), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    mean, half_width = mean_interval(x[:1])
    np.testing.assert_array_equal(mean, x[0])
    assert np.isnan(half_width).all()
    with pytest.raises(ValueError, match="at least one member"):
        mean_interval(np.zeros((0, 3)))


def test_crossed_interval_by_hand():
    """Members' means 2, 4, 6 and items' 3, 5: t_2 = 4.303 of deviation 2, and 1.960 of deviation 2 ** 0.5."""
    x = np.array([[1.0, 3], [3, 5], [5, 7]])
    found = crossed_interval(x)
    half = math.hypot(4.302653 * 2 / 3**0.5, 1.959964 * 2**0.5 / 2**0.5)
    assert found.value == 4 and found.kind == "t"
    assert (found.low, found.high) == pytest.approx((4 - half, 4 + half), rel=1e-6)
    assert crossed_interval(x, bounds=(3, 100))[1:3] == pytest.approx((3, 4 + half), rel=1e-6)
    for few in (x[:1], x[:, :1]):
        assert crossed_interval(few).kind == "none" and math.isnan(crossed_interval(few).low)
    for wrong in (np.ones(3), np.ones((0, 2))):
        with pytest.raises(ValueError, match=r"at least one member and one item, \[M, N\], got shape"):
            crossed_interval(wrong)


def test_crossed_interval_covers_the_truth():
    """Effects of members, items and neither: at least 95 in 100 of new tables, where seeds alone fail."""
    random, hits, seeds = np.random.default_rng(0), 0, 0
    for _ in range(400):
        table = random.normal(size=(6, 1)) + 3 * random.normal(size=(1, 30)) + random.normal(size=(6, 30))
        found = crossed_interval(table)
        hits += found.low < 0 < found.high
        mean, half = mean_interval(table.mean(1))
        seeds += abs(mean) < half
    assert hits >= 0.93 * 400 and seeds < hits


def test_mean_interval_covers_the_truth_95_times_in_100():
    x = np.random.default_rng(1).normal(loc=3.0, size=(4, 20_000))
    mean, half_width = mean_interval(x)
    covered = np.mean(np.abs(mean - 3.0) < half_width)
    assert abs(covered - 0.95) < 0.006  # four standard errors of the share


def test_interquartile_mean_drops_a_quarter_at_each_end():
    mean, low, high, kind = interquartile_mean([100.0, 2.0, 1.0, 3.0, -50.0, 4.0, 0.0, 5.0])
    assert mean == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert low < mean < high and kind == "bootstrap"
    # Of six members one and a half go at each end: 0.5 * 1 + 2 + 3 + 0.5 * 4 over 3.
    assert interquartile_mean([0.0, 1.0, 2.0, 3.0, 4.0, 9.0])[0] == pytest.approx(7.5 / 3)
    assert interquartile_mean([7.0])[0::3] == (7.0, "none") and np.isnan(interquartile_mean([7.0]).low)
    assert interquartile_mean([1.0, 3.0]) == (2.0, 1.0, 3.0, "range")
    with pytest.raises(ValueError, match="got shape"):
        interquartile_mean([])


def test_the_interquartile_mean_of_several_tasks_pools_values_and_resamples_within_a_task():
    """Every run of a task the same: nothing to resample, though the tasks lie far apart."""
    x = np.tile([0.0, 1.0, 2.0, 9.0], (5, 1))
    assert interquartile_mean(x) == (1.5, 1.5, 1.5, "bootstrap")
    x = np.random.default_rng(0).normal(size=(8, 3)) + [0.0, 5.0, 10.0]
    value, low, high, _ = interquartile_mean(x)
    assert value == pytest.approx(scipy.stats.trim_mean(x, 0.25, axis=None)) and low < value < high
    assert high - low < np.subtract(*interquartile_mean(x.ravel())[2:0:-1]) / 3
    mirrored = interquartile_mean([[0.0, 10.0], [10.0, 0.0]] * 4)
    assert mirrored[1] < mirrored[0] == 5.0 < mirrored[2]  # whole rows would give 5 in every draw
    assert interquartile_mean(x[:, :1]) == interquartile_mean(x[:, 0])
    with pytest.raises(ValueError, match=r"\[n, tasks\], got shape \(1, 1, 1\)"):
        interquartile_mean(np.zeros((1, 1, 1)))


def test_the_interval_of_a_mean_stays_in_its_bounds():
    """Of 1, 2 and 3 it is 2 +- t s / sqrt(3) with t = 4.303 and s = 1."""
    np.testing.assert_allclose(t_interval([1.0, 2.0, 3.0])[:3], [2.0, 2.0 - 2.484, 2.0 + 2.484], atol=1e-3)
    assert t_interval([0.0, 10.0], bounds=(0, 100))[:2] == (5.0, 0.0)
    assert t_interval([100.0, 90.0], bounds=(0, 100)).high == 100.0
    assert t_interval([2.0]).kind == "none" and np.isnan(t_interval([2.0]).low)


@pytest.mark.parametrize("hits, trials", [(0, 1), (1, 1), (0, 9), (7, 10), (9, 9), (381, 1000)])
def test_wilsons_interval_against_scipy(hits, trials):
    """7 of 10 is [0.397, 0.892]; none and all stay within [0, 1] and have a width."""
    got = wilson_interval(hits, trials)
    found = scipy.stats.binomtest(hits, trials).proportion_ci(method="wilson")
    np.testing.assert_allclose(got[:3], [hits / trials, found.low, found.high], atol=1e-12)
    assert got.kind == "wilson" and 0 <= got.low < got.high <= 1


def test_members_that_end_below_half_of_their_best():
    returns = np.array([[np.nan, 10.0, 0.0, 9.0], [30.0, 4.0, 8.0, 20.0], [14.9, 4.9, 8.0, 10.1]])
    np.testing.assert_array_equal(fell_by_half(returns), [True, True, False, False])


@pytest.mark.parametrize("returns", [np.zeros(3), np.zeros((0, 2)), [[-3.0], [-100.0]]])
def test_a_fall_by_half_is_of_what_is_not_negative(returns):
    with pytest.raises(ValueError, match=r"returns must be \[n, members\], none negative, got shape"):
        fell_by_half(returns)


def test_ratios_have_a_geometric_mean_and_an_interval_above_zero():
    ratios = np.array([0.5, 2.0, 4.0, 0.01])
    half = scipy.stats.t.ppf(0.975, 3) * np.log(ratios).std(ddof=1) / 2
    mean = np.log(ratios).mean()
    low, high = np.exp([mean - half, mean + half])
    got = ratio_interval(ratios)
    np.testing.assert_allclose(got[:3], [np.exp(mean), low, high])
    assert got.kind == "t" and got.low > 0


def test_wilsons_interval_of_nothing_and_of_halves():
    assert np.isnan(wilson_interval(0, 0)[:3]).all() and wilson_interval(0, 0).kind == "none"
    assert wilson_interval(2.5, 5).value == 0.5
    for trials in range(1, 300):
        assert wilson_interval(0, trials).low >= 0 and wilson_interval(trials, trials).high <= 1
    for hits, trials in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=f"got {hits} of {trials}"):
            wilson_interval(hits, trials)


def test_a_paired_interval_is_scipys():
    x, y = np.random.default_rng(3).normal(size=(2, 9))
    found = scipy.stats.ttest_rel(x, y).confidence_interval(0.95)
    np.testing.assert_allclose(paired_interval(x, y)[:3], [(x - y).mean(), found.low, found.high], rtol=1e-9)
    assert paired_interval(x, y).kind == "t"


def test_a_paired_interval_stays_within_what_a_difference_can_be():
    """Mean 0.85, half-width 12.7 * 0.15: far beyond both ends."""
    got = paired_interval([1.0, 0.9], [0.0, 0.2], bounds=(-1.0, 1.0))
    assert got == (pytest.approx(0.85), -1.0, 1.0, "t")
    assert paired_interval([0.5], [0.25])[0::3] == (0.25, "none")
    with pytest.raises(ValueError, match=r"got \(2,\) and \(1,\)"):
        paired_interval([1.0, 2.0], [1.0])


@pytest.mark.parametrize("b, c", [(0, 0), (3, 3), (1, 8), (8, 1), (0, 6), (40, 61), (900, 1100)])
def test_mcnemar_against_scipy(b, c):
    """1 against 8: 2 (1 + 9) / 2^9 = 0.0390625."""
    first = np.repeat([1, 0, 1, 0], [b, c, 5, 7])
    second = np.repeat([0, 1, 1, 0], [b, c, 5, 7])
    got = mcnemar_test(first, second)
    expected = scipy.stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert got == (b, c, pytest.approx(expected, rel=1e-9))


def test_mcnemar_takes_right_and_wrong_alone():
    assert mcnemar_test([True, False], [False, False]) == (1, 0, 1.0)
    for first, second, message in (([0.5], [1.0], "right"), ([1, 1], [1], "got"), ([], [], "N >= 1")):
        with pytest.raises(ValueError, match=message):
            mcnemar_test(first, second)


def test_an_interval_prints_the_digits_that_it_carries():
    assert str(Interval(0.53123, 0.50219, 0.56021, "wilson")) == "0.53 [0.50, 0.56]"
    assert str(Interval(0.53123, 0.52219, 0.54021, "t")) == "0.531 [0.522, 0.540]"
    assert str(Interval(0.5, 0.35, 0.65, "t")) == "0.50 [0.35, 0.65]"
    assert str(Interval(1234.56, 1100.0, 1300.0, "t")) == "1235 [1100, 1300]"
    assert str(Interval(0.5, 0.25, 0.75, "range")) == "0.5 [0.2, 0.8] (range)"
    assert str(Interval(1.0, 1.0, 1.0, "bootstrap")) == "1 [1, 1]"
    assert str(Interval(-1e-9, -2e-8, 1.5e-8, "t")) == str(Interval(0.0, 0.0, 0.0, "t")) == "0 [0, 0]"
    assert str(Interval(2e-6, 1e-6, 3e-6, "t")) == "0.0000020 [0.0000010, 0.0000030]"
    assert str(Interval(0.53123, math.nan, math.nan, "none")) == "0.531 (no interval)"
    assert str(Interval(math.nan, math.nan, math.nan, "none")) == "undefined"


@pytest.mark.parametrize("ratio", [0.0, -1.0])
def test_a_ratio_that_has_no_logarithm_is_refused(ratio):
    with pytest.raises(ValueError, match=f"ratios must be above 0, got {ratio:g}"):
        ratio_interval([1.0, ratio])
