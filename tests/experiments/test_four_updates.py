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
from tests.experiments.loading import load
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


def test_a_run_in_miniature(config, monkeypatch, capsys):
    """All arms start from one policy with the same answers; the offset is no part of the reported score."""
    models = lambda setup: make_models(setup)
    monkeypatch.setattr(four.rlhf, "pretrain", lambda setup, folder: (models(setup).reference, None))
    monkeypatch.setattr(four.rlhf, "fine_tune", lambda setup, folder, base: (base, None))
    monkeypatch.setattr(four.rlhf, "annotate", lambda setup, sft: (None, None, None))
    monkeypatch.setattr(four.rlhf, "learn_reward", lambda setup, *_: (models(setup).reward_model, None))
    four.main(config)
    path = Path(config.out)
    found = json.loads((path / "results.json").read_text(encoding="utf-8"))
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
    out = capsys.readouterr().out
    assert "own rates" in out and "rate 0.01" in out and "drift - exploration" in out
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
