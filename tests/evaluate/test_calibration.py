import json
from pathlib import Path

import numpy as np
import pytest

from jaxrl_align.evaluate.measures.calibration import (
    Platt,
    brier_score,
    calibration_bins,
    expected_calibration_error,
    fit_platt,
    option_probs,
    selective_accuracy,
)

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "metrics.json").read_text(encoding="utf-8"))
CASES = FIXTURE["calibration"]
SURE, RIGHT = np.array(CASES[1]["confidence"]), np.array(CASES[1]["correct"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['correct'])} items")
def test_against_the_packages(case):
    sure, right = case["confidence"], case["correct"]
    for name in ("equal_mass", "equal_width"):
        for bins, expected in case[name].items():
            got = expected_calibration_error(sure, right, bins=int(bins), equal_mass=name == "equal_mass")
            assert got == pytest.approx(expected, abs=1e-9), (name, bins)
    platt = fit_platt(sure, right)
    np.testing.assert_allclose(platt, case["platt"], atol=1e-6)
    scaled = expected_calibration_error(platt.scale(sure), right)
    assert scaled == pytest.approx(case["platt_equal_mass"], abs=1e-6)
    assert brier_score(sure, right) == pytest.approx(case["brier"], abs=1e-12)
    if not case["ties"]:  # among equal confidences their order decides
        np.testing.assert_allclose(selective_accuracy(sure, right), (case["top"], case["area"]), atol=1e-12)


@pytest.mark.parametrize("case", FIXTURE["options"])
def test_brier_of_options_against_scikit_learn(case):
    assert brier_score(case["probs"], case["answers"]) == pytest.approx(case["brier"], abs=1e-12)
    p = np.array([0.2, 0.9])
    assert brier_score(np.stack([1 - p, p], 1), [0, 1]) == pytest.approx(2 * brier_score(p, [0, 1]))


def test_bins_by_hand():
    """Equal mass: the two least sure, the two surest. Equal width: 0.5 belongs to the lower half."""
    sure, right = [0.9, 0.5, 0.1, 0.7], [1, 0, 0, 1]
    np.testing.assert_allclose(calibration_bins(sure, right, bins=2), [[0.3, 0, 2], [0.8, 1, 2]])
    np.testing.assert_allclose(
        calibration_bins(sure, right, bins=2, equal_mass=False), [[0.3, 0, 2], [0.8, 1, 2]]
    )
    assert expected_calibration_error(sure, right, bins=2) == pytest.approx((0.3 + 0.2) / 2)
    assert expected_calibration_error(sure, right, bins=1) == pytest.approx(0.55 - 0.5)
    assert calibration_bins(sure, right, bins=9).shape == (4, 3)
    assert expected_calibration_error([0.2, 0.2, 0.9], [1, 0, 1], bins=2) == pytest.approx((0.6 + 0.1) / 3)


def test_the_order_of_items_changes_nothing():
    order = np.random.default_rng(0).permutation(len(SURE))
    for measure in (
        expected_calibration_error,
        lambda s, r: expected_calibration_error(s, r, equal_mass=False),
        selective_accuracy,
        fit_platt,
    ):
        np.testing.assert_allclose(measure(SURE, RIGHT), measure(SURE[order], RIGHT[order]), rtol=1e-9)


def test_items_of_equal_confidence_share_their_accuracy():
    """0.9 right; then 0.6 of a right and a wrong one count a half each."""
    got = selective_accuracy([0.6, 0.9, 0.6], [1, 1, 0])
    assert got == (1.0, pytest.approx((1 + 1.5 / 2 + 2 / 3) / 3))
    assert selective_accuracy(np.linspace(1, 0.5, 20), [1, 1, 0] + [1] * 17).top == pytest.approx(2 / 3)
    assert selective_accuracy([0.5] * 20, [1, 0] * 10) == (0.5, 0.5)


def test_platts_scaling_mends_a_model_that_is_too_sure():
    random = np.random.default_rng(0)
    logit = random.normal(0, 1, 4000)
    right = random.random(4000) < 1 / (1 + np.exp(-(0.5 * logit + 0.3)))
    platt = fit_platt(1 / (1 + np.exp(-logit)), right)
    np.testing.assert_allclose(platt, (0.5, 0.3), atol=0.15)
    sure = 1 / (1 + np.exp(-3 * logit))
    before, after = (expected_calibration_error(x, right) for x in (sure, fit_platt(sure, right).scale(sure)))
    assert before > 0.15 and after < 0.03


def test_platts_scaling_at_its_edges():
    """All right, all wrong, one confidence for all, certainty, and confidences that part right from wrong."""
    assert fit_platt([0.5, 0.9], [1, 1]) == Platt(0.0, np.inf)
    np.testing.assert_array_equal(fit_platt([0.5, 0.9], [1, 1]).scale([0.5, 1.0]), 1.0)
    np.testing.assert_array_equal(fit_platt([0.5, 0.9], [0, 0]).scale([0.5, 1.0]), 0.0)
    np.testing.assert_allclose(fit_platt([0.5] * 4, [1, 1, 1, 0]).scale([0.5]), 0.75)
    assert np.isfinite(fit_platt([0.0, 1.0, 1.0, 0.0], [0, 1, 0, 1])).all()
    parted = fit_platt([0.2, 0.3, 0.7, 0.8], [0, 0, 1, 1])
    np.testing.assert_allclose(parted.scale([0.2, 0.3, 0.7, 0.8]), [0, 0, 1, 1], atol=1e-6)
    assert np.isfinite(parted).all()
    x = np.log([0.2 / 0.8, 0.3 / 0.7, 0.7 / 0.3, 0.8 / 0.2])  # at the optimum the ridge alone holds the slope
    left = x @ (parted.scale([0.2, 0.3, 0.7, 0.8]) - [0, 0, 1, 1])
    assert left == pytest.approx(-1e-10 * parted.slope, rel=1e-3)


def test_options_become_probabilities():
    got = option_probs([[0.0, np.log(3.0)], [-1000.0, -1000.0], [-np.inf, -5.0]])
    np.testing.assert_allclose(got, [[0.25, 0.75], [0.5, 0.5], [0.0, 1.0]])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: expected_calibration_error([], []), r"\[N\] with N >= 1; got \(0,\)"),
        (lambda: fit_platt([0.5], [1, 0]), r"got \(1,\) and \(2,\)"),
        (
            lambda: selective_accuracy([0.5, 1.2], [1, 0]),
            "confidence must be from 0 to 1; got 1.2 for item 1",
        ),
        (lambda: selective_accuracy([0.5, np.nan], [1, 0]), "got nan for item 1"),
        (lambda: expected_calibration_error([0.5], [2]), "correct must be from 0 to 1; got 2.0 for item 0"),
        (lambda: calibration_bins([0.5], [1], bins=0), "bins must be at least 1; got 0"),
        (lambda: brier_score([[0.5, 0.5]], [2]), "answers from 0 to 1"),
        (lambda: brier_score([1.5], [1]), "probs must be from 0 to 1"),
        (lambda: brier_score([0.5], [1, 0]), r"got \(1,\) and \(2,\)"),
    ],
)
def test_what_is_no_probability_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
