import numpy as np
import pytest

from jaxrl_align.evaluate import report_pairs

MARGINS = np.array([2.0, -1.0, 0.5, 0.0, 3.0])
LENGTHS = np.array([[10, 5], [8, 9], [4, 4], [20, 19], [3, 30]])


def test_the_report_by_hand():
    """Equal scores and equal lengths count half; 8 of 9 and 20 of 19 words are of like length at 0.12."""
    got = report_pairs(MARGINS, LENGTHS, tolerance=0.12, bins=1)
    assert (got.pairs, got.accuracy, got.length_accuracy) == (5, 3.5 / 5, pytest.approx(2.5 / 5))
    assert (got.matched_pairs, got.matched_accuracy) == (3, pytest.approx(1.5 / 3))
    assert got.nats == pytest.approx(np.mean(np.log1p(np.exp(-MARGINS))))
    sure = np.mean(1 / (1 + np.exp(-np.abs(MARGINS))))
    np.testing.assert_allclose(got.bins, [[sure, 0.7, 5]])
    assert got.calibration_error == pytest.approx(abs(sure - 0.7))


def test_the_shorter_side_is_a_baseline_too():
    assert report_pairs([1.0, 1.0, 1.0], [[1, 2], [1, 2], [2, 1]]).length_accuracy == pytest.approx(2 / 3)


def test_bins_go_by_how_sure_the_model_is():
    """Of four pairs the two surest are one bin; who is right where unsure is badly calibrated."""
    got = report_pairs([-4.0, 0.1, -3.0, 0.2], np.ones((4, 2)), bins=2)
    sigma = lambda x: 1 / (1 + np.exp(-x))
    expected = [[(sigma(0.1) + sigma(0.2)) / 2, 1.0, 2], [(sigma(3.0) + sigma(4.0)) / 2, 0.0, 2]]
    np.testing.assert_allclose(got.bins, expected)
    assert got.calibration_error == pytest.approx((1 - expected[0][0] + expected[1][0]) / 2)


def test_scores_that_state_their_chances_are_calibrated():
    rng = np.random.default_rng(0)
    margins = np.abs(rng.normal(0, 2, 40_000))
    right = rng.random(40_000) < 1 / (1 + np.exp(-margins))
    got = report_pairs(np.where(right, margins, -margins), np.ones((40_000, 2)))
    assert got.calibration_error < 0.01
    assert report_pairs(3 * np.where(right, margins, -margins), np.ones((40_000, 2))).calibration_error > 0.05


def test_wilsons_interval_of_independent_pairs():
    """7 of 10 right: [0.397, 0.892], by the closed form of Wilson (1927); all right stays below 1."""
    margins = np.repeat([1.0, -1.0], [7, 3])
    np.testing.assert_allclose(
        report_pairs(margins, np.ones((10, 2))).interval, [0.39678, 0.89221], atol=1e-4
    )
    low, high = report_pairs(np.ones(10), np.ones((10, 2))).interval
    assert low == pytest.approx(10 / (10 + 1.959964**2)) and high == pytest.approx(1.0)


def test_pairs_of_a_group_err_together():
    """Ten groups with all of their pairs right, or all wrong, are ten judgements and not a thousand."""
    margins = np.repeat(np.where(np.arange(10) < 7, 1.0, -1.0), 100)
    groups = np.repeat(np.arange(10) + 5, 100)
    low, high = report_pairs(margins, np.ones((1000, 2)), groups=groups, resamples=4000).interval
    assert low == pytest.approx(0.4, abs=0.11) and high == pytest.approx(1.0, abs=0.11)
    assert report_pairs(margins, np.ones((1000, 2))).interval[0] > 0.66


def test_no_pair_of_like_length_is_no_number():
    got = report_pairs([1.0, -1.0], [[1, 9], [9, 1]])
    assert got.matched_pairs == 0 and np.isnan([got.matched_accuracy, *got.matched_interval]).all()
    assert "; none of like length; " in str(got)


def test_the_line_shows_every_measure():
    line = str(report_pairs(MARGINS, LENGTHS, tolerance=0.12, bins=1))
    for part in (
        "70.0% [",
        "of 5 pairs",
        "length alone 50.0%",
        "of 3 pairs of like length 50.0% [",
        "nats",
    ):
        assert part in line


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([], np.ones((0, 2))), {}, r"margins must be \[N\] and lengths \[N, 2\], N >= 1; got \(0,\)"),
        ((MARGINS, LENGTHS.T), {}, r"got \(5,\) and \(2, 5\)"),
        (([1.0, np.nan], LENGTHS[:2]), {}, "margins must be finite; got nan for pair 1"),
        (([1.0, 2.0], [[3, 4], [np.nan, 1]]), {}, r"lengths must be at least 0; got \[nan, 1.0\] for pair 1"),
        (([1.0, 2.0], [[3, -4], [2, 1]]), {}, "lengths must be at least 0; got .* for pair 0"),
        ((MARGINS, LENGTHS), {"groups": [1, 1, 1, 1, 1]}, "of at least two kinds; got shape .* and 1 kinds"),
        ((MARGINS, LENGTHS), {"groups": [1, 2]}, "groups must be one a pair"),
    ],
)
def test_what_is_no_report_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        report_pairs(*arguments, **options)
