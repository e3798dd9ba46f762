"""The experiments on action values in miniature: they run to their figures and refuse what is missing."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxrl_align.runtime import Interval, Trained

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def experiment():
    """Return `name -> module` of a script in experiments/ or experiments/benchmarks/."""
    folders = [str(EXPERIMENTS), str(EXPERIMENTS / "benchmarks")]
    sys.path[:0] = folders
    yield importlib.import_module
    for folder in folders:
        sys.path.remove(folder)
    for name in ("replay", "dqn", "peers"):  # names that others may want
        sys.modules.pop(name, None)


def near(value, half):
    return Interval(value, value - half, value + half, "t")


def results(out):
    return json.loads((out / "result.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_dqn_learns_and_is_evaluated(experiment, tmp_path):
    module = experiment("dqn_cartpole")
    config = module.Config(
        seeds=2, total_env_steps=160, capacity=800, batch_size=8, episodes=3, out=str(tmp_path / "run")
    )
    module.main(config)
    out = tmp_path / "run"
    result = results(out)
    (table,) = result["tables"].values()
    greedy, sampled = table.values()
    assert len(greedy["each seed"]) == len(sampled["each seed"]) == 2 and min(greedy["each seed"]) >= 8
    assert list(result["headline"].values()) == [greedy["interquartile mean"]]
    assert [text.partition(":")[0] for text in result["checks"]] == ["greedily"] * 2 + [
        "with epsilon 0.05"
    ] * 2
    assert (out / "learning_curve.png").stat().st_size > 5_000


def test_goals_are_asked_of_the_greedy_policy_and_publications_of_the_sampled_one(experiment, tmp_path):
    module = experiment("dqn_cartpole")
    config, first = module.Config(seeds=2, out=str(tmp_path / "run")), np.array([20.0, 22.0])
    folder = config.open_folder()
    (folder.path / "learning_curve.png").touch()

    def checks(greedy, sampled):
        judged = {"greedy": np.array([greedy] * 2), module.SAMPLED: np.array([sampled] * 2)}
        module.report(config, folder, module.CLAIM, judged, first)
        return list(results(folder.path)["checks"].values())

    assert checks(490.0, 460.0) == [True] * 4 and checks(470.0, 490.0) == [True, False, True, True]
    assert checks(490.0, 400.0) == [True, True, True, False]
    assert results(folder.path)["baselines"]["return of the first episodes"]["value"] == 21


@pytest.mark.slow
def test_both_q_learners_are_measured_against_the_exact_values(experiment, tmp_path):
    module = experiment("value_iteration")
    module.main(
        module.Config(seeds=2, states=4, actions=2, total_env_steps=800, batch_size=8, out=str(tmp_path))
    )
    result = results(tmp_path)
    learnt, solved = result["tables"].values()
    assert list(learnt) == [
        f"{name}, {kind}" for name in ("FrozenLake", "random process") for kind in ("tabular", "DQN")
    ]
    for row in learnt.values():
        assert 0 < row[module.ERROR]["value"] < 1.5 and row[module.LACKS]["value"] >= 0
    assert solved.keys() == {"FrozenLake", "random process"}
    assert [x["value"] for x in result["headline"].values()] == [
        learnt[f"FrozenLake, {kind}"][module.ERROR]["value"] for kind in ("tabular", "DQN")
    ]
    assert result["figures"] == ["FrozenLake.png", "random_process.png"]


def test_the_greedy_policys_loss_is_told_whatever_the_sign_of_the_value(experiment):
    module, mdp = experiment("value_iteration"), SimpleNamespace(start=np.array([1.0]))
    errors, values = {"table": np.array([[1.0, 1.0], [0.5, 0.5]])}, {"table": np.array([-2.2, -2.2])}
    (row,) = module.tabulate_learnt(np.array([[-3.0, -2.0]]), mdp, errors, values).values()
    assert [x.value for x in row.values()] == [0.5, pytest.approx(10), 1]


def test_the_verdict_on_q_learning_is_that_of_distances_and_values(experiment):
    module = experiment("value_iteration")

    def judged(error=0.05, lacks=2, apart=1e-5):
        row = {module.ERROR: near(error, 0.02), module.LACKS: near(lacks, 2)}
        learnt = {"lake, table": row, "lake, DQN": row | {module.ERROR: near(0.05, 0.02)}}
        solved = {"lake": {module.APART: 1e-5}, "other": {module.APART: apart}}
        return list(module.judge({module.LEARNT: learnt, module.SOLVED: solved}).values())

    assert judged() == [True] * 5
    assert judged(error=0.09) == [False, True, True, True, True]
    assert judged(lacks=4) == [True, False, True, False, True]
    assert judged(apart=1e-3) == [True] * 4 + [False]


@pytest.mark.slow
def test_the_ablation_measures_every_arm(experiment, tmp_path, monkeypatch):
    module = experiment("replay_ablation")
    monkeypatch.setattr(module, "RATES", (1e-4, 1e-3))
    small = {"total_env_steps": 320, "batch_size": 8, "hidden": 8, "batches": 8}
    module.main(module.Config(seeds=2, choosing_seeds=3, out=str(tmp_path), **small))
    result = results(tmp_path)
    table, gains, chosen = result["tables"].values()
    assert tuple(table) == tuple(chosen) == module.ARMS
    for name, row in table.items():
        assert np.isfinite(row[module.AFTER]["value"]) and 8 < row[module.RETURN_OF]["value"] < 320
        best = max(chosen[name], key=chosen[name].get)
        assert len(chosen[name]) == 2 and row["learning rate"] == best.removeprefix("rate ")
        assert ("successive updates, in time" in row) == (name in ("uniform", "prioritised"))
    for pair, row in gains.items():
        more, less = pair.split(" less ")
        difference = table[more][module.RETURN_OF]["value"] - table[less][module.RETURN_OF]["value"]
        assert row["difference"]["value"] == pytest.approx(difference)
    assert list(result["headline"].values()) == [gains["uniform less latest"]["difference"]]
    assert result["figures"] == ["learning_curve.png", "correlation.png"]


def test_the_verdict_on_replay_is_that_of_correlations_and_returns(experiment):
    module = experiment("replay_ablation")

    def judged(**change):
        x = {"online": 0.3, "latest": 0.3, "of_32": 1.5, "uniform": 0.0, "mean": 1.0} | change
        table = {
            "online": {module.AFTER: near(x["online"], 0.1)},
            "latest": {module.AFTER: near(x["latest"], 0.1), module.VARIANCE: near(x["of_32"], 0.1)},
            "uniform": {module.AFTER: near(x["uniform"], 0.1), module.VARIANCE: near(x["mean"], 0.1)},
        }
        pairs = {"uniform less online": "a", "uniform less latest": "b", "prioritised less uniform": "c"}
        gains = {pair: {"difference": near(x.get(key, 2), 1)} for pair, key in pairs.items()}
        return list(module.judge(table, gains).values())

    assert judged() == [True] * 7
    worse = [("online", 0.05, 0), ("latest", 0.05, 1), ("of_32", 1.05, 2), ("mean", 1.2, 3), ("mean", 0.8, 3)]
    worse += [("uniform", 0.2, 3), ("uniform", -0.2, 3), ("a", 0.5, 4), ("b", 0.5, 5), ("c", 0.5, 6)]
    for name, value, check in worse:
        assert judged(**{name: value}) == [True] * check + [False] + [True] * (6 - check)


def test_rates_are_chosen_on_other_seeds_than_are_reported(experiment, monkeypatch):
    module, seen = experiment("replay_ablation"), []

    def train(learner, hparams, config, steps, *, keys, **how):
        seen.append(jax.random.key_data(keys))
        rates = np.broadcast_to(hparams.learning_rate, len(keys))
        return Trained(None, {module.RETURN[0]: np.tile(rates == np.float32(3e-4), (8, 1)) + 0.0}, 0.0, None)

    monkeypatch.setattr(module, "train_members", train)
    config = module.Config(seeds=5, choosing_seeds=3)
    folder = SimpleNamespace(sub=lambda name: name)
    _, returns, choices = module.train(config, "uniform", None, folder)
    assert returns.shape == (8, 5) and returns.all()
    np.testing.assert_array_equal(choices, [rate == 3e-4 for rate in module.RATES])
    first, second = ({tuple(key) for key in np.asarray(keys)} for keys in seen)
    assert len(first) == 3 and len(second) == 5 and not first & second


@pytest.mark.slow
def test_dqn_learns_from_images(experiment, tmp_path):
    module = experiment("dqn_minatar")
    small = {"seeds": 2, "num_envs": 4, "num_steps": 2, "updates": 1, "total_env_steps": 64, "capacity": 64}
    module.main(module.Config(**small, batch_size=8, hidden=8, episodes=2, out=str(tmp_path)))
    assert (tmp_path / "learning_curve.png").exists() and results(tmp_path)["claim"] == module.CLAIM.text


@pytest.mark.slow
def test_benchmarks_run_without_their_peers_and_say_so(experiment, capsys):
    module = experiment("replay")
    module.main(module.Config(capacity=64, capacities=(64, 256), batch_size=8, steps=64, rounds=2))
    module = experiment("dqn")
    module.main(module.Config(capacity=640, batch_size=8, seeds=2, timesteps=320, rounds=2))
    module = experiment("tuning")
    small = {"vocab": 20, "width": 8, "layers": 1, "heads": 1, "batch": 2, "length": 5, "rank": 2}
    module.main(module.Config(**small, real=False, rounds=2))
    module = experiment("alignment")
    small = {"vocab": 20, "width": 8, "layers": 1, "heads": 1, "context": 16, "batch": 2, "prompts": 2}
    module.main(module.Config(**small, prompt=3, new=3, group=2, real=False, steps=1, rounds=1))
    said = capsys.readouterr().out
    assert "give --flashbax PYTHON" in said and "give --sb3 PYTHON" in said and "give --rejax PYTHON" in said
    assert "peft_lora is left out, give --peers PYTHON" in said
    assert all(f"{name} is left out" in said for name in ("trl_dpo", "trl_ppo", "trl_grpo"))


@pytest.mark.parametrize(
    ("python", "message"), [("no/such/python", "no interpreter"), (sys.executable, "install it there: pip")]
)
def test_a_missing_peer_is_named_with_its_remedy(experiment, python, message):
    with pytest.raises(ImportError, match=message):
        experiment("peers").start(python, "sb3", nonsense=1)
