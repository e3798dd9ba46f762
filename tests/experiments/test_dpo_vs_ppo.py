"""Direct and group methods against PPO in miniature: budgets by hand, labels, rewards, rates, a whole run."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.align import RewardModel, answer_log_probs, choose_completions, init_reward_params
from jaxrl_align.runtime import Interval
from tests.experiments.loading import load, read_result
from tests.experiments.test_rlhf import CORPUS, SMALL

load("rlhf_setup").SAMPLES = 8
experiment, report = load("dpo_vs_ppo"), load("dpo_vs_ppo_report")
SIZE = SMALL | {"seeds": 3, "tuning_seeds": 1, "rlhf_steps": 3, "prompts_per_step": 4, "group_size": 2}
SIZE |= {"pairs_per_step": 4, "best_of": 2}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dpo_vs_ppo")
    (folder / "corpus.txt").write_text(CORPUS, encoding="utf-8")
    return experiment.Config(out=str(folder / "run"), corpus=str(folder / "corpus.txt"), **SIZE)


@pytest.fixture(scope="module")
def world(config):
    """Return members of random weights, a reward model that pays 2 for all, demonstrations above noise."""
    setup = experiment.Setup(config)
    params = jax.vmap(setup.lm.init)(setup.keys(0))
    heads = jax.vmap(lambda key, p: init_reward_params(key, setup.lm, p))(setup.keys(1), params)
    models = RewardModel(heads, jnp.zeros(3), jnp.full(3, 2.0))
    rows = lambda x: jnp.stack([x[:8]] * 3)
    good = jax.tree.map(rows, setup.responses)
    bad = good._replace(tokens=(good.tokens + 7) % config.vocab_size)
    labels = choose_completions(jax.tree.map(rows, setup.prompts), good, bad, jnp.ones((3, 8), bool))
    return experiment.World(setup, params, models, labels)


def test_costs_by_hand():
    """Prompts of 8 and answers of 24 tokens: a pair is read in 56 passes, an answer in 32, a group in 104."""
    config = experiment.Config()
    once = 40 * 3 * 32 * 56 + 1024 * 32
    expected = {
        "ORPO": (3 * 32 * 56, 0),
        "DPO": (3 * 32 * 56, 820 * 56),
        "KTO": (3 * 32 * 56, 1640 * 56),
        "PPO": (32 * 32 * 9, once),
        "GRPO": (8 * 104 * 8 + 32 * 32, once),
        "Dr. GRPO": (8 * 104 * 8 + 32 * 32, once),
        "rejection sampling": (8 * 104 * 7 + 32 * 32, once),
    }
    for method, cost in expected.items():
        assert experiment.count_passes(config, method) == cost


def test_all_methods_spend_what_ppo_does():
    config = experiment.Config()
    ppo = experiment.count_passes(config, "PPO")
    budget = ppo.once + config.rlhf_steps * ppo.step
    assert experiment.count_steps(config, "PPO") == config.rlhf_steps
    for method in experiment.METHODS:
        cost, steps = experiment.count_passes(config, method), experiment.count_steps(config, method)
        assert 0 <= budget - cost.once - steps * cost.step < experiment.CHUNKS * cost.step
        assert steps % experiment.CHUNKS == 0


def test_kto_learns_from_the_same_labels(world):
    referenced = experiment.rows_of(world, "KTO")
    rows = jax.tree.map(lambda x: x[1], referenced.rows)
    chosen = jax.tree.map(lambda x: x[1], world.labels.chosen)
    rejected = jax.tree.map(lambda x: x[1], world.labels.rejected)
    np.testing.assert_array_equal(rows.completion.tokens, [*chosen.tokens, *rejected.tokens])
    np.testing.assert_array_equal(rows.value, [1.0] * 8 + [0.0] * 8)
    np.testing.assert_array_equal(rows.prompt.tokens[:8], rows.prompt.tokens[8:])
    pairs = jax.tree.map(lambda x: x[1], experiment.rows_of(world, "DPO").log_prob)
    np.testing.assert_allclose(referenced.log_prob[1, :, 0], [*pairs[:, 0], *pairs[:, 1]], atol=1e-3)
    assert experiment.rows_of(world, "SimPO") is world.labels


@pytest.mark.parametrize("method", ["KTO", "cDPO"])
def test_a_direct_method_moves_towards_the_chosen_answers(world, method):
    learner, hparams, start, frozen = experiment.prepare(world, method)
    one = lambda tree: jax.tree.map(lambda x: x[0], tree)
    state = learner.init(jax.random.key(0), hparams._replace(learning_rate=1e-2), one(start), one(frozen))
    step = jax.jit(learner.step)
    for _ in range(8):
        state, _ = step(state, None, one(frozen))
    rows = one(world.labels)
    both = jax.tree.map(lambda *x: jnp.stack(x, 1), rows.chosen, rows.rejected)
    read = lambda p: answer_log_probs(world.setup.lm, p, rows.prompt, both, jax.random.key(0))
    gap = [np.mean(x[:, 0] - x[:, 1]) for x in map(read, (one(start), state.params))]
    assert gap[1] > gap[0] + 1.0


@pytest.mark.parametrize(("method", "name"), [("PPO", "objective/scores"), ("Dr. GRPO", "reward")])
def test_the_reward_models_score_is_all_that_is_paid(world, method, name):
    """Also for an answer without a stop token, of which random weights write many."""
    learner, hparams, start, frozen = experiment.prepare(world, method)
    one = lambda tree: jax.tree.map(lambda x: x[0], tree)
    state = learner.init(jax.random.key(0), hparams, one(start), one(frozen))
    _, metrics = jax.jit(learner.step)(state, None, one(frozen))
    np.testing.assert_allclose(metrics[name], 2.0, rtol=1e-6)


def test_the_rate_is_chosen_on_other_seeds_than_are_reported(config, monkeypatch):
    """Gold falls with the rate on the two tuning seeds, and rises on the others."""
    ran = []

    def train(world, folder, method, seeds, rates):
        ran.append((seeds.tolist(), np.asarray(rates).tolist()))
        return np.asarray(rates), 0.0

    def measure(world, policy, seeds):
        return {"gold": np.where(seeds < 2, -policy, policy)}

    monkeypatch.setattr(experiment, "train", train)
    monkeypatch.setattr(experiment, "measure", measure)
    config = dataclasses.replace(config, seeds=4, tuning_seeds=2, ladder=(0.9, 0.3, 0.1, 0.2, 0.9))
    world = SimpleNamespace(setup=SimpleNamespace(config=config))
    found = experiment.compare(world, SimpleNamespace(sub=lambda name: None), "DPO")
    assert ran == [([0, 1] * 3, [0.3, 0.3, 0.1, 0.1, 0.2, 0.2]), ([2, 3], [0.1, 0.1])]
    assert found["rate"] == 0.1
    np.testing.assert_array_equal(found["gold"], [0.1, 0.1])


def test_the_best_of_two_by_hand(config, world, monkeypatch):
    """The scores 1, 0 and 0, 1 of two prompts' answers choose the rewards 10 and 40."""
    real = np.ones((2, 4, 3))
    gold = np.array([[10.0, 20.0, 30.0, 40.0]] * 2)
    samples = SimpleNamespace(gold=gold, completions=SimpleNamespace(real=real), kl=None)
    asked = []

    def write(policy, reference, prompts, keys):
        asked.append(prompts.tokens)
        return samples

    monkeypatch.setattr(world.setup, "write", write)
    monkeypatch.setattr(world.setup, "score_answers", lambda *_: np.array([[1.0, 0.0, 0.0, 1.0]] * 2))
    found = experiment.best_of_n(world)
    np.testing.assert_array_equal(found["gold"], [25.0, 25.0])
    np.testing.assert_array_equal(found["score"], [1.0, 1.0])
    np.testing.assert_allclose(found["kl"], np.log(2) - 0.5, rtol=1e-6)
    np.testing.assert_array_equal(asked[0][:, 0], asked[0][:, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("PPO", "TRPO")}, "methods must be PPO and then any of .*got PPO, TRPO"),
        ({"methods": ("DPO",)}, "methods must be PPO and then any of .*got DPO"),
        ({"ladder": (1e-3,)}, "ladder must hold at least 5 learning rates"),
        ({"group_size": 3}, "group_size must divide prompts_per_step"),
        ({"seeds": 2}, "seeds must be at least 3; got seeds=2"),
    ],
)
def test_what_cannot_be_compared_is_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)


@pytest.mark.slow
def test_a_run_in_miniature_continues_to_the_same_result(config, capsys):
    """Three seeds are reported, as many runs as choose a rate: so both take one program."""
    config = dataclasses.replace(config, methods=("PPO", "rejection sampling", "DPO", "KTO"), seeds=4)
    experiment.main(config)
    out = Path(config.out)
    first = read_result(out)
    table = first["tables"]["held-out prompts"]
    assert list(table) == ["SFT", "best of 2", *config.methods]
    assert table["SFT"]["KL to SFT [nats]"]["value"] == pytest.approx(0.0, abs=1e-4)
    assert table["PPO"]["KL to SFT [nats]"]["value"] > 1e-4
    rates = first["tables"]["gold reward on the tuning seeds, by learning rate"]
    assert (
        list(rates["PPO"]) == ["0.0003", "0.001", "0.003", "0.01", "taken"] and rates["PPO"]["0.0003"] == ""
    )
    ((name, gain),) = first["headline"].items()
    rival = name.removeprefix("gold reward of PPO less ").removesuffix("'s, paired")
    gold = lambda name: table[name]["gold reward"]["value"]
    assert rival in ("DPO", "KTO") and gain["value"] == pytest.approx(gold("PPO") - gold(rival))
    assert gold(rival) == max(gold("DPO"), gold("KTO")) and len(first["checks"]) == 5
    assert (out / "gold_against_kl.png").stat().st_size > 5_000
    experiment.main(dataclasses.replace(config, resume=True))
    assert read_result(out) == first
    assert "gold, less PPO's" in capsys.readouterr().out


def test_the_verdict_is_that_of_gains_that_no_interval_leaves_open():
    up, down, level = (Interval(x, x - 0.2, x + 0.2, "t") for x in (1.0, -1.0, 0.0))
    open_up, open_down = (Interval(x, x - 0.2, x + 0.2, "t") for x in (0.1, -0.1))
    others = {"SFT": up, "PPO": down, "best of n": down, "imitation": up}
    gains = {"PPO": {"SFT": up}, "DPO": others, "IPO": others, "RLOO": {"PPO": level}, "GRPO": {"PPO": down}}
    judge = lambda gains: list(report.judge(gains, ("DPO", "IPO"), ("RLOO", "GRPO")).values())
    failing = lambda gains: [i for i, holds in enumerate(judge(gains)) if not holds]
    assert judge(gains) == [True] * 6
    assert failing(gains | {"PPO": {"SFT": open_up}}) == [0]
    for i, other, value in ((1, "PPO", open_down), (2, "best of n", open_down), (3, "imitation", open_up)):
        assert failing(gains | {"IPO": others | {other: value}}) == [i]
    assert failing(gains | {"RLOO": {"PPO": down}}) == [4]
    assert failing(gains | {"RLOO": {"PPO": Interval(0.1, -0.1, 0.3, "t")}}) == [4]
    assert failing(gains | {"GRPO": {"PPO": up}}) == [5]
    assert len(report.judge(gains, (), ())) == 1
    assert report.less({"gold": [2.0, 3.0]}, {"gold": [1.0, 1.0]}).value == 1.5
