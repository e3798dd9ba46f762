"""Rounds: the hidden reward, which reward model is measured where, what each arm spends, and a miniature."""

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.experiments.loading import load, read_result
from tests.experiments.test_rlhf import CORPUS, SMALL

load("rlhf_setup").SAMPLES = 8
rounds = load("rounds")
tables = load("rounds_report")
TINY = SMALL | {
    "seeds": 3,
    "tuning_seeds": 1,
    "rounds": 2,
    "comparisons": 16,
    "rlhf_steps": 4,
    "policy_rates": (1e-3,),
    "kl_coefs": (0.0, 5.0),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    corpus = folder / "corpus.txt"
    corpus.write_text(CORPUS, encoding="utf-8")
    return rounds.Config(out=str(folder / "run"), corpus=str(corpus), **TINY)


def test_the_score_is_the_hidden_reward_of_ended_and_of_cut_answers(config):
    setup = rounds.Setup(config)
    rng, stop = np.random.default_rng(0), setup.text.stop_token
    prompts = np.asarray(setup.prompts.tokens[:4])
    sentences = np.asarray(setup.responses.tokens[:4])
    answers = np.where(sentences == stop, setup.text.pad_token, sentences)
    answers[2:] = rng.integers(3, 280, answers[2:].shape)
    ends = np.array([20, 5, 7, 20])
    answers[1, 4] = answers[2, 6] = stop
    mask = (np.arange(answers.shape[1]) < ends[:, None]).astype(float)
    expected = [
        setup.gold(setup.tokenizer.decode(row[:end]), stop in row[:end])
        for row, end in zip(answers, ends, strict=True)
    ]
    real = np.concatenate([np.asarray(setup.prompts.real[:4]), mask], 1)
    score = jax.jit(jax.vmap(lambda *text: rounds.gold_score(setup)(None, *text)))
    found = score(jnp.asarray(np.concatenate([prompts, answers], 1)), jnp.asarray(real))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(set(expected)) > 2


def test_order_by_hand():
    """Pairs (2, 1) right, (1, 3) wrong, (1, 1) of equal gold not counted; then an equal score."""
    gold = np.array([[2.0, 1.0, 1.0, 3.0, 1.0, 1.0], [1.0, 2.0, 0.0, 1.0, 2.0, 3.0]])
    scores = np.array([[5.0, 0.0, 2.0, 1.0, 7.0, 0.0], [1.0, 1.0, 0.0, 1.0, 0.0, 1.0]])
    np.testing.assert_allclose(rounds.order(scores, gold), [0.5, 2.5 / 3])


def test_fresh_and_stale_are_the_next_reward_model_and_the_policys_own(config):
    """Model i orders rightly the answers of the policy before it, and all others wrongly."""
    gold, seeds = np.array([[1.0, 2.0, 3.0, 5.0], [4.0, 1.0, 0.0, 2.0]]), np.array([2, 0])
    number = np.tile(np.arange(4), (2, 1))
    states = rounds.States(number, rounds.RewardModel(number, number, number))

    def write(policy, reference, prompts, keys):
        assert prompts.shape == (2, 2) and (prompts[:, 0] == prompts[:, 1]).all()
        np.testing.assert_array_equal(reference, [30, 10])
        return SimpleNamespace(gold=gold + policy[0], kl=policy[:, None] * np.ones((2, 4)), number=policy)

    setup = SimpleNamespace(
        draw_prompts=lambda *_: np.arange(3)[:, None],
        test_prompts=None,
        keys=lambda _: np.arange(3),
        write=write,
        score_answers=lambda model, samples: (
            gold * np.where(model.gain == samples.number + 1, 1, -1)[:, None]
        ),
    )
    found = rounds.measure(setup, np.array([10, 20, 30]), states, seeds)
    np.testing.assert_array_equal(found["fresh"], [[1.0, 1.0]] * 3 + [[np.nan, np.nan]])
    np.testing.assert_array_equal(found["stale"], [[np.nan, np.nan]] + [[0.0, 0.0]] * 3)
    np.testing.assert_allclose(found["gold"], gold.mean(1) + np.arange(4.0)[:, None])
    np.testing.assert_array_equal(found["kl"], number.T)
    path = tables.Path(np.array([0, 5, 10, 15]), **found)
    steps, accuracy = path.accuracy()
    np.testing.assert_array_equal(steps, [0, 5, 5, 10, 10, 15])
    np.testing.assert_array_equal(accuracy[:, 0], [1, 0, 1, 0, 1, 0])
    last = path.last()
    assert [last[k].value for k in ("first [%]", "last [%]", "refitted [points]")] == [100, 0, 100]
    one = tables.Path(path.steps[:2], *(x[:2] for x in path[1:])).last()
    assert "refitted [points]" not in one and one["last [%]"].value == 0


def test_every_arm_spends_the_same(config, monkeypatch):
    class Built(Exception):
        pass

    spent = {}

    def build(*_, **settings):
        raise Built(settings)

    monkeypatch.setattr(rounds, "make_rounds_learner", build)
    setup = rounds.Setup(config)
    for name, arm in rounds.list_arms(config).items():
        with pytest.raises(Built) as built:
            rounds.take_rounds(setup, None, arm, [])
        (spent[name],) = built.value.args
        assert arm.parts * spent[name]["comparisons"] == config.comparisons
        assert arm.parts * spent[name]["policy_steps"] == config.rlhf_steps
        assert arm.parts * spent[name]["reward_steps"] == config.reward_steps
    rooms = [row["rounds"] * row["comparisons"] for row in spent.values()]
    assert rooms == [16, 16, 8, 16]
    assert [row["writer"] for row in spent.values()] == ["policy"] * 3 + ["reference"]


def test_rates_are_chosen_on_the_tuning_seeds(config, monkeypatch):
    """One round is best at the first rate, several at the second; arms without a rate take the latter's."""
    config = dataclasses.replace(config, policy_rates=(0.1, 0.2))
    asked = []

    def run_arm(setup, sft, arm, runs):
        asked.extend(run.seed for run in runs)
        sign = 1 if arm.parts == 1 else -1
        return {"gold": [[9.0, 9.0, 0.0, 0.0], [sign * (0.15 - run.rate) for run in runs]]}

    monkeypatch.setattr(rounds, "run_arm", run_arm)
    folder = SimpleNamespace(once=lambda name, make, *args: make(*args))
    rates, tried = rounds.tune(SimpleNamespace(config=config), folder, None)
    assert [row["taken"] for row in tried.values()] == ["0.1", "0.2"]
    assert list(rates.values()) == [0.1, 0.2, 0.2, 0.2] and set(asked) == {0}


def test_results_are_of_their_coefficient_rate_and_seed(config, monkeypatch):
    """A run's gold reward is 100 coefficient + seed, an arm's rate its own; the tuning seed is left out."""
    seen = {}

    def run_arm(setup, sft, arm, runs):
        assert {run.rate for run in runs} == {0.1 if arm.parts == 1 else 0.2}
        rows = np.tile([100 * run.kl_coef + run.seed for run in runs], (arm.parts + 1, 1))
        return {name: rows for name in ("gold", "kl", "fresh", "stale")}

    folder = SimpleNamespace(
        once=lambda name, make, *args: make(*args), write_json=lambda *_: None, path=Path("x")
    )
    monkeypatch.setattr(rounds, "Setup", lambda config: SimpleNamespace(config=config))
    monkeypatch.setattr(rounds.Config, "open_folder", lambda _: folder)
    for stage in ("pretrain", "fine_tune"):
        monkeypatch.setattr(rounds.rlhf, stage, lambda *_: (None, None))
    arms = rounds.list_arms(config)
    rates = {name: 0.1 if arm.parts == 1 else 0.2 for name, arm in arms.items()}
    monkeypatch.setattr(rounds, "run_arm", run_arm)
    monkeypatch.setattr(rounds, "tune", lambda *_: (rates, {}))
    monkeypatch.setattr(rounds, "report", lambda *args: seen.update(args[3]))
    monkeypatch.setattr(rounds, "draw", lambda *_: None)
    rounds.main(config)
    for coef, paths in seen.items():
        assert list(paths) == list(arms)
        for name, path in paths.items():
            np.testing.assert_array_equal(path.gold[-1], [100 * coef + 1, 100 * coef + 2])
            np.testing.assert_array_equal(path.steps, np.linspace(0, 4, arms[name].parts + 1))


@pytest.mark.slow
def test_a_run_in_miniature_continues_to_the_same_result(config, monkeypatch, capsys):
    arms = dict(itertools.islice(rounds.list_arms(config).items(), 2))
    monkeypatch.setattr(rounds, "list_arms", lambda _: arms)
    monkeypatch.setattr(rounds, "tune", lambda *_: (dict.fromkeys(arms, 1e-2), {}))
    rounds.main(config)
    out = Path(config.out)
    first = read_result(out)
    found = json.loads((out / "values.json").read_text(encoding="utf-8"))
    starts = {str(row["gold"][0]) for arms in found.values() for row in arms.values()}
    assert len(starts) == 1, "every arm and coefficient starts at the same policies"
    for name in ("1 round", "2 rounds"):
        free, held = (found[coef][name] for coef in ("0", "5"))
        np.testing.assert_allclose(free["kl"][0], 0.0, atol=1e-4)
        assert free["kl"][-1] != held["kl"][-1]
    assert np.shape(found["0"]["2 rounds"]["accuracy"]) == (4, 2)
    ends = [np.array(found["0"][name]["gold"][-1]) for name in ("1 round", "2 rounds")]
    gain, _ = first["headline"].values()
    assert gain["value"] == pytest.approx(np.mean(ends[1] - ends[0])) and len(first["checks"]) == 6
    assert (out / "rounds.png").stat().st_size > 20_000
    (out / "result.json").unlink()
    rounds.main(dataclasses.replace(config, resume=True))
    assert read_result(out) == first
    assert "gold, less 1 round" in capsys.readouterr().out


def make_path(gold, fresh, stale):
    """Return an arm of two rounds, two seeds a little apart."""
    row = lambda values: np.array(values)[:, None] + np.array([0.0, 0.01])
    return tables.Path(np.array([0, 2, 4]), row(gold), row(gold), row(fresh), row(stale))


def test_what_decides_by_hand():
    """Own answers against the last arm's; a fall of 30 points; fitted anew, 20 points more."""
    one = make_path([1, 2, 2], [0.8, np.nan, np.nan], [np.nan, np.nan, 0.5])
    many = make_path([1, 2, 3], [0.7, 0.9, np.nan], [np.nan, 0.7, 0.6])
    decided = tables.compare({"1": one, "2": many, "newest": one, "first": make_path([1, 1, 1], *one[3:])})
    values = {name: round(x.value, 6) for name, x in decided.items()}
    assert values == {"fall": -30.0, "gain": 1.0, "refitted": 20.0, "own answers": 2.0}
    assert "own answers" not in tables.compare({"1": one, "2": many})
    checks = tables.judge({0.0: decided, 0.1: decided})
    assert len(checks) == 8 and all(checks.values())
    for i, name in enumerate(decided):
        middle = -0.5 if name == "fall" else 0.5
        wide = tables.Interval(middle, -1.0, 1.0, "t")
        judged = tables.judge({0.0: decided, 0.1: decided | {name: wide}}).values()
        assert [k for k, holds in enumerate(judged) if not holds] == [2 * i + 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 3}, "rounds must divide rlhf_steps"),
        ({"reward_steps": 3}, "rounds must divide reward_steps"),
        ({"comparisons": 12}, "rounds times prompts must divide comparisons"),
        ({"seeds": 2}, "seeds must be at least 3"),
    ],
)
def test_what_cannot_be_divided_is_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)
