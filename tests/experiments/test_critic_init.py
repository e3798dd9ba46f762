"""The comparison of critics in miniature: it runs to its figures, and its measures are what they say."""

import json

import numpy as np
import pytest

from jaxrl_align.runtime import Interval
from tests.experiments.loading import load, read_result
from tests.experiments.test_rlhf import CORPUS, SMALL


@pytest.fixture(scope="module")
def experiment():
    load("rlhf_setup").SAMPLES = 8
    return load("critic_init")


@pytest.mark.slow
def test_every_critic_is_tuned_and_reported_on_other_seeds(experiment, tmp_path, capsys):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(CORPUS, encoding="utf-8")
    config = experiment.Config(
        out=str(tmp_path / "run"), corpus=str(corpus), tuning_seeds=1, measured_prompts=8,
        learning_rates=(1e-4, 1e-3), **SMALL | {"seeds": 3},
    )  # fmt: skip
    experiment.main(config)
    found = json.loads((tmp_path / "run" / "values.json").read_text(encoding="utf-8"))
    for trunk in experiment.TRUNKS:
        assert np.shape(found[trunk]["tried"]) == (2, 2, 1)
        assert np.shape(found[trunk]["score"]) == np.shape(found[trunk]["value"]) == (2, 2, 5)
        zero, (explained, most) = np.array(found[trunk]["explained"])
        np.testing.assert_allclose(zero, 0.0, atol=1e-5)
        assert np.abs(explained).min() > 1e-4 and (explained <= most + 1e-5).all() and most.max() <= 1.0
        assert set(found[trunk]["rates"]) <= {1e-4, 1e-3}
    for name in ("score", "value"):
        assert (tmp_path / "run" / f"{name}.png").stat().st_size > 5_000
    result = read_result(tmp_path / "run")
    table = result["tables"]["critics at their rates"]
    assert len(table) == 6 and len(result["checks"]) == 4
    steps = [experiment.steps_to(np.array(score), 1.0).mean() for score in found["separate"]["score"]]
    less = table["separate trunk, reward model less zero"]["steps to the target"]
    assert less == list(result["headline"].values())[1] and less["value"] == pytest.approx(
        steps[1] - steps[0]
    )
    assert "separate trunk, reward model less zero" in capsys.readouterr().out


def test_the_verdict_is_that_of_intervals_that_leave_nothing_open(experiment):
    up, down, open_up, open_down = (Interval(x, x - 1, x + 1, "t") for x in (2.0, -2.0, 0.5, -0.5))
    judge = lambda *found: list(experiment.judge(*found).values())
    both = lambda x, y: {"shared": x, "separate": y}
    assert judge(both(up, up), both(down, down)) == [True] * 4
    assert judge(both(up, open_up), both(open_down, down)) == [True, False, False, True]
    assert judge(both(down, down), both(up, up)) == [False] * 4


def test_a_table_holds_both_starts_and_their_difference(experiment):
    """From zero the second step reaches the target of 1, from the reward model the first."""
    config = experiment.Config(rlhf_steps=3)
    seeds = np.array([[0.0], [0.01]])
    found = {
        "score": [np.array([[0.0, 2.0, 2.0]]) + seeds, np.array([[1.5, 2.0, 2.5]]) + seeds],
        "explained": [np.zeros((2, 2)), np.array([[-1.0, -0.9], [0.1, 0.2]])],
    }
    table = experiment.tabulate(config, found)
    less = {name: cell.value for name, cell in table["reward model less zero"].items()}
    assert less["steps to the target"] == -1 and less["explained, step 0"] == pytest.approx(-0.95)
    assert table["zero"]["missed"] == 0
    assert table["reward model"]["correlation^2, step 0"].value == pytest.approx(0.15)


def test_steps_are_counted_to_the_running_means_first_crossing(experiment):
    score = np.array([[0.0, 0, 0, 0, 0, 5, 5, 5], [0, 0, 0, 0, 0, 0, 0, 0], [9, 0, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_allclose(experiment.smooth(score)[0], [0, 0, 0, 0, 0, 1, 2, 3])
    np.testing.assert_allclose(experiment.smooth(score)[2], [9, 4.5, 3, 2.25, 1.8, 0, 0, 0])
    np.testing.assert_array_equal(experiment.steps_to(score, 2.0), [7, 8, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tuning_seeds": 0}, "tuning_seeds must be at least 1"),
        ({"seeds": 5}, "seeds must be at least 6; got seeds=5"),
        ({"minibatches": 3}, "minibatches must divide prompts_per_step"),
    ],
)
def test_what_would_leave_nothing_to_report_is_refused(experiment, change, message):
    with pytest.raises(ValueError, match=message):
        experiment.Config(**change)
