"""The pool of answers that two experiments share: its shapes, its rates, its measure."""

from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.types import PaddedTokens
from tests.experiments.loading import load
from tests.experiments.test_rlhf import CORPUS
from tests.tiny import LM, PARAMS, VOCAB

load("rlhf_setup").SAMPLES = 8
answers = load("answers")


class Miniature(NamedTuple):
    """The sizes of `make_tiny_pool`, and of trainings on it."""

    seeds: int = 2
    tuning_seeds: int = 1
    prompts: int = 10
    test_prompts: int = 3
    test_answers: int = 4
    reward_steps: int = 2
    learning_rates: tuple[float, ...] = (1e-3,)


class FakeFolder:
    """A folder that nothing is written to."""

    def sub(self, name):
        return self


def make_tiny_pool(seed=0):
    """Return three members of random weights' neighbours, and random answers with random gold rewards."""
    rng, size = np.random.default_rng(seed), Miniature()
    members = size.seeds + size.tuning_seeds

    def draw(*shape):
        return PaddedTokens(rng.integers(0, VOCAB, shape), np.ones(shape, np.float32))

    def write(prompts, each):
        texts = [["x" * n for n in rng.integers(1, 40, prompts * each)] for _ in range(members)]
        completions = draw(members, prompts, each, 3)
        return answers.Answers(
            draw(members, prompts, 2), completions, rng.normal(size=(members, prompts, each)), texts
        )

    params = jax.tree.map(lambda x: jnp.stack([(1 + 0.1 * i) * x for i in range(members)]), PARAMS)
    return answers.Pool(LM, params, write(size.prompts, 4), write(size.test_prompts, size.test_answers))


def test_pair_accuracy_by_hand():
    """Of the pairs 2 > 1, 3 > 1, 3 > 2 of a prompt two and a half are right, of two 5 > 4 one."""
    gold = np.array([[1.0, 2.0, 3.0], [4.0, 4.0, 5.0]])
    scores = np.array([[0.0, 1.0, 1.0], [3.0, 1.0, 2.0]])
    np.testing.assert_allclose(answers.pair_accuracy(scores, gold), 3.5 / 5)


def test_rates_are_chosen_by_the_mean():
    accuracy = {"a": np.array([[0.5, 0.7], [0.6, 0.7], [0.9, 0.1]]), "b": np.array([[0.9], [0.8], [0.7]])}
    best, table = answers.choose_rates(accuracy, (1.0, 2.0, 3.0))
    assert best == {"a": 2.0, "b": 1.0}
    assert table["a"] == pytest.approx({"1": 60.0, "2": 65.0, "3": 50.0, "taken": "2"})


def test_a_rate_that_was_not_tried_leaves_its_cell_empty():
    table = load("rates").rates_table(
        {"a": {1e-3: 0.5, 1e-4: 0.25}, "b": {1e-2: 1.0}}, {"a": 1e-3, "b": 1e-2}
    )
    assert list(table["b"].items()) == [("0.0001", ""), ("0.001", ""), ("0.01", 1.0), ("taken", "0.01")]
    assert table["a"] == {"0.0001": 0.25, "0.001": 0.5, "0.01": "", "taken": "0.001"}


def test_rows_are_repeated_in_turn():
    rows = answers.repeat_rows({"a": np.arange(6).reshape(3, 2)}, 5)
    np.testing.assert_array_equal(rows["a"], [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]])


def test_scores_are_those_of_the_member_and_the_answer():
    pool = make_tiny_pool()
    heads = jax.vmap(answers.rm.init_reward_params, (0, None, 0))(
        jax.random.split(jax.random.key(0), 2), LM, jax.tree.map(lambda x: x[:2], pool.params)
    )
    scores = answers.score_answers(LM, heads, pool.test, np.array([2, 0]))
    assert scores.shape == (2, 3, 4)
    for i, member in ((0, 2), (1, 0)):
        prompt, text = (x.tokens[member, 1] for x in pool.test[:2])
        model = answers.rm.RewardModel(jax.tree.map(lambda x, i=i: x[i], heads))
        alone = answers.rm.score(LM, model, np.concatenate([prompt, text[3]]), np.ones(5, np.float32))
        np.testing.assert_allclose(scores[i, 1, 3], alone, rtol=1e-4, atol=1e-5)


def test_settings_and_members_keep_their_places(monkeypatch):
    """Untrained, all settings score alike; rates, rows, keys and answers are of setting and member."""
    pool, seen = make_tiny_pool(), {}

    def train_members(learner, hparams, config, steps, *, keys, params, frozen, **options):
        seen.update(rates=hparams.learning_rate, keys=jax.random.key_data(keys), rows=frozen, params=params)
        return SimpleNamespace(state=SimpleNamespace(params=params))

    monkeypatch.setattr(answers, "train_members", train_members)
    config, folder = answers.AnswersConfig(), SimpleNamespace(path=Path("x"))
    rows = [[np.array([10 * setting + member]) for member in (2, 0)] for setting in (0, 1)]
    scores = answers.fit_and_score(pool, config, folder, (2, 0), rows, lambda lm: None, (0.1, 0.2))
    np.testing.assert_allclose(seen["rates"], [0.1, 0.1, 0.2, 0.2])
    np.testing.assert_array_equal(seen["rows"][:, 0], [2, 0, 12, 10])
    np.testing.assert_array_equal(seen["keys"][:2], seen["keys"][2:])
    assert (seen["keys"][0] != seen["keys"][1]).any()
    for mine, leaf in zip(*map(jax.tree.leaves, (seen["params"]["lm"], pool.params)), strict=True):
        np.testing.assert_array_equal(mine, leaf[np.array([2, 0, 2, 0])])
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)
    alone = answers.fit_and_score(pool, config, folder, (2,), rows[:1], lambda lm: None, (0.1,))
    np.testing.assert_allclose(scores[0, 0], alone[0, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_members_write_their_own_answers(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(CORPUS, encoding="utf-8")
    small = {"vocab_size": 280, "width": 16, "heads": 2, "pretrain_steps": 4, "sft_steps": 2, "prompts": 3}
    small |= {"seeds": 2, "tuning_seeds": 1, "answers": 2, "test_prompts": 2, "test_answers": 4}
    config = answers.AnswersConfig(out=str(tmp_path / "run"), corpus=str(corpus), **small)
    pool = answers.make_pool(config, config.open_folder())
    assert pool.train.gold.shape == (3, 3, 2) and pool.test.gold.shape == (3, 2, 4)
    assert pool.test.completions.tokens.shape == (3, 2, 4, 24) and pool.train.prompts.real.shape == (3, 3, 8)
    assert len({str(member) for member in pool.train.texts}) == 3
    np.testing.assert_array_equal(pool.train.lengths(), pool.train.completions.real.sum(-1))
