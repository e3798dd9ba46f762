"""The four updates in miniature: offsets, variances by hand, the choice of rates, and a whole run."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxrl_align.actors.text import Frozen
from jaxrl_align.align import VANILLA, VARIANCE, RewardModel, init_reward_params
from jaxrl_align.runtime import Interval
from tests.experiments.loading import load, read_result
from tests.experiments.test_rlhf import CORPUS, SMALL

load("rlhf_setup").SAMPLES = 8
four = load("four_updates")
report = load("four_updates_report")

SIZES = SMALL | {"seeds": 3, "tuning_seeds": 1, "rlhf_steps": 3, "group_size": 2, "batches": 4}


def make_models(setup):
    """Return random policies, which need not stop, and reward models of every seed."""
    start = jax.vmap(setup.lm.init)(setup.keys(0))
    score = jax.vmap(lambda key, p: init_reward_params(key, setup.lm, p))(setup.keys(1), start)
    ones = jnp.ones(setup.config.seeds)
    return Frozen(start, RewardModel(score, ones, 0.1 * ones))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four_updates")
    corpus = folder / "corpus.txt"
    corpus.write_text(CORPUS, encoding="utf-8")
    return four.Config(out=str(folder / "run"), corpus=str(corpus), learning_rates=(1e-3, 1e-2), **SIZES)


@pytest.fixture(scope="module")
def setup(config):
    """The stages' parts; answers are scored as they are, since random policies seldom stop."""
    setup = four.Setup(config)
    setup.text = dataclasses.replace(setup.text, missing_stop="keep")
    return setup


def test_variances_of_gradients_by_hand(setup):
    """Against each batch's own gradient; an offset of all scores moves the vanilla update's alone."""
    models, seeds = make_models(setup), np.array([2, 1])
    arms = [four.Arm(update, offset) for update in (VANILLA, VARIANCE) for offset in (0.0, 5.0)]
    params = {"lm": jax.tree.map(lambda x: x[seeds], models.reference)}
    found = four.gradient_variance(setup, params, models, seeds, arms)
    assert found.shape == (4, 2)
    assert (found[1] > 2.0 * found[0]).all()
    np.testing.assert_allclose(found[3], found[2], rtol=1e-3)
    assert np.abs(found[2] / found[0] - 1.0).min() > 1e-2

    one = jax.tree.map(lambda x: x[2], (models.reference, models.reward_model))
    start, frozen = {"lm": one[0]}, Frozen(*one)
    learner = four.make_learner(setup, None, optimizer=optax.identity())
    hparams = VARIANCE._replace(learning_rate=1.0)
    step = jax.jit(lambda key: learner.step(learner.init(key, hparams, start), None, frozen)[0].params)
    keys = jax.random.split(setup.keys(21)[2], SIZES["batches"])
    flat = np.array([ravel_pytree(step(key))[0] for key in keys], np.float64)
    np.testing.assert_allclose(found[2, 0], flat.var(0, ddof=1).sum(), rtol=1e-3)


def test_rates_are_chosen_on_the_tuning_seeds():
    gold = np.array([[[1.0, 2.0, 9.0], [2.0, 3.0, 0.0]], [[4.0, 4.0, 0.0], [1.0, 1.0, 9.0]]])
    np.testing.assert_array_equal(report.choose_rates(gold, 2), [1, 0])


def test_the_verdict_is_that_of_the_stabilisers_intervals():
    up, down, open_up, open_down = (Interval(x, x - 1, x + 1, "t") for x in (2.0, -2.0, 0.5, -0.5))
    less, more = (Interval(x, 0.9 * x, 1.1 * x, "t") for x in (0.5, 2.0))
    about_less, about_more = (Interval(x, 0.9 * x, 1.1 * x, "t") for x in (0.95, 1.05))
    first = {"variance": less, "vanilla, score + 2": more}
    good = {
        "vanilla, score + 2 less vanilla": {"score": down, "entropy": up, "KL": up},
        "exploration less variance": {"score": up, "entropy": up, "KL": up},
        "drift less exploration": {"score": up, "entropy": up, "KL": down},
        "drift less variance": {"score": up, "entropy": up, "KL": down},
    }
    variance = {"first policy": first, "last policy": first}
    judge = lambda table, rates, variance: list(report.judge(table, rates, variance).values())
    assert judge(good, [good, good], variance) == [True] * 7
    failing = lambda found: [i for i, holds in enumerate(found) if not holds]
    calm = good | {"exploration less variance": good["exploration less variance"] | {"entropy": open_up}}
    assert failing(judge(calm, [good], variance)) == [4]
    free = good | {"drift less exploration": good["drift less exploration"] | {"KL": open_down}}
    assert failing(judge(free, [good], variance)) == [5]
    offset = {"vanilla, score + 2 less vanilla": {"score": open_down}}
    assert failing(judge(good | offset, [good], variance)) == [3]
    near = good | {"drift less variance": {"KL": open_down}}
    assert failing(judge(good, [good, near], variance)) == [6]
    assert failing(judge(good, [good], variance | {"last policy": first | {"variance": about_less}})) == [0]
    assert failing(judge(good, [good], variance | {"first policy": first | {"variance": about_less}})) == [1]
    centred = variance | {"first policy": first | {"vanilla, score + 2": about_more}}
    assert failing(judge(good, [good], centred)) == [2]


def test_differences_are_first_less_second():
    arms = list(four.ARMS)
    values = np.arange(5.0).reshape(5, 1, 1) ** 2 + np.array([0.0, 0.1])
    ends = {name: np.concatenate([np.zeros((5, 1, 2)), values], axis=1) for name in report.BOUNDS}
    table = report.tabulate(arms, ends, np.ones(5, int))
    assert table["drift less variance"]["KL"].value == pytest.approx(16 - 4)
    assert table["drift"]["gold"].value == pytest.approx(16.05) and table["drift"]["gold"].high == 5


def test_a_run_in_miniature(config, monkeypatch, capsys):
    """All arms start from one policy with the same answers; the offset is no part of the reported score."""
    models = lambda setup: make_models(setup)
    monkeypatch.setattr(four.rlhf, "pretrain", lambda setup, folder: (models(setup).reference, None))
    monkeypatch.setattr(four.rlhf, "fine_tune", lambda setup, folder, base: (base, None))
    monkeypatch.setattr(four.rlhf, "annotate", lambda setup, sft: (None, None, None))
    monkeypatch.setattr(four.rlhf, "learn_reward", lambda setup, *_: (models(setup).reward_model, None))
    four.main(config)
    path = Path(config.out)
    found = json.loads((path / "values.json").read_text(encoding="utf-8"))
    curves = {name: np.array(values) for name, values in found["curves"].items()}
    arms, rates, seeds, steps = curves["score"].shape
    assert (arms, rates, seeds, steps) == (5, 2, 3, 3) and curves["gold"].shape == (5, 2, 3, 2)
    for name in ("score", "entropy", "KL"):
        first = curves[name][..., 0]
        np.testing.assert_allclose(first, np.broadcast_to(first[:1, :1], first.shape), atol=1e-4)
    assert np.ptp(curves["score"][0, 0, :, 0]) > 1e-3, "seeds differ"
    np.testing.assert_allclose(curves["KL"][..., 0], 0.0, atol=1e-4)
    assert (np.ptp(curves["entropy"][:, 1, :, -1], axis=0) > 0.0).all(), "the updates differ"
    np.testing.assert_allclose(found["ends"]["score"], curves["score"].mean(-1), rtol=1e-5)
    result = read_result(path)
    titles = [title.split(":")[0] for title in result["tables"]]
    assert titles[:3] == ["rate 0.001", "rate 0.01", "own rates"] and len(result["checks"]) == 7
    table = next(table for title, table in result["tables"].items() if title.startswith("rate 0.01"))
    gap = curves["KL"][4, 1, 1:].mean(-1) - curves["KL"][2, 1, 1:].mean(-1)
    drift = next(cell for text, cell in result["headline"].items() if text.startswith("KL"))
    assert drift == table["drift less variance"]["KL"] and drift["value"] == pytest.approx(gap.mean())
    assert "drift less exploration" in capsys.readouterr().out
    assert (path / "four_updates.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tuning_seeds": 2}, "seeds must be at least 4; got seeds=3"),
        ({"group_size": 1}, "group_size must be at least 2"),
        ({"batches": 1}, "batches must be at least 2"),
    ],
)
def test_what_would_leave_nothing_to_report_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        four.Config(**SIZES | change)
