"""The commands ppo, grpo and rloo, on the tiny model."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.actors import make_text_actor
from jaxrl_align.align import RLHFHParams
from jaxrl_align.cli import choosing, datasets
from jaxrl_align.cli.datasets import (
    choose_lengths,
    divide_rows,
    file_sha256,
    shuffled_batches,
    whole_batches,
)
from jaxrl_align.cli.judges import load_judge
from jaxrl_align.cli.options import DataOptions, LengthOptions
from jaxrl_align.cli.runs import online, online_methods
from jaxrl_align.cli.runs.online import open_scene
from jaxrl_align.cli.runs.online_methods import PPO, start_critic
from jaxrl_align.feedback import read_demonstrations, read_feedback, read_prompts
from jaxrl_align.runtime.cli import parse
from jaxrl_align.runtime.huggingface import load_model, save_model
from jaxrl_align.types import PaddedTokens
from tests.cli.conftest import PROMPTS, write_rows

RUN = "--model tiny --data prompts.jsonl --samples 0 --rank 2 --response-length 4 --every 3 --batch-size 4"


def read_metrics(out):
    return [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_rloo_follows_a_python_reward(road, tmp_path):
    """The reward grows with each space and letter, so that the held-out mean must rise."""
    out = tmp_path / "out"
    settings = "--steps 20 --group-size 4 --learning-rate 0.03 --kl-coef 0 --held-out prompts.jsonl"
    road(f"rloo {RUN} {settings} --tuning full --reward own_rewards:spaces --out", out)
    held_out = json.loads((out / "run" / "held_out.json").read_text())
    assert list(held_out) == ["0", "3", "6", "9", "12", "15", "18", "20"]
    assert max(found["reward"] for found in held_out.values()) > held_out["0"]["reward"] + 0.2
    rows = read_metrics(out)
    assert len(rows) == 20 and {"reward", "reward_std", "objective/kl", "kl"} <= rows[0].keys()
    load_model(out)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "dr-grpo", "gspo", "reinforce++", "best-of-group"])
def test_group_methods_run(road, tmp_path, method, monkeypatch, capsys):
    monkeypatch.setattr(online, "hint_form", lambda name, chat: f"; {name} of chat {chat}")
    settings = f"--method {method} --steps 3 --group-size 2 --updates 2 --minibatches 2"
    road(f"grpo {RUN} {settings} --reward own_rewards:knows --out", tmp_path / "out")
    assert len(read_metrics(tmp_path / "out")) == 3
    assert "answers of at most 4 tokens; own_rewards:knows of chat False" in capsys.readouterr().out


@pytest.mark.slow
def test_ppo_learns_from_a_reward_model_that_reward_wrote(road, tmp_path):
    judge, out = tmp_path / "judge", tmp_path / "out"
    road("reward --model tiny --data pairs.jsonl --steps 2 --every 2 --batch-size 2 --rank 2 --out", judge)
    road(f"ppo {RUN} --steps 3 --reward {judge} --tuning full --kl-target 2 --out", out)
    rows = read_metrics(out)
    assert rows[0]["objective/kl_coef"] == pytest.approx(0.05) and rows[0]["objective/kl"] < 1e-3
    assert rows[1]["objective/kl_coef"] < 0.05  # far below its target
    load_model(out)


@pytest.mark.slow
def test_ppo_starts_its_critic_from_the_reward_model_and_goes_on_predicting_texts(road, tmp_path):
    judge, out = tmp_path / "judge", tmp_path / "out"
    road("reward --model tiny --data pairs.jsonl --steps 2 --every 2 --batch-size 2 --rank 2 --out", judge)
    line = f"{RUN} --steps 6 --reward {judge} --tuning full --critic reward-model --pretraining sft.jsonl"
    road(f"ppo {line} --pretraining-coef 50 --learning-rate 0.02 --minibatches 1 --out", out)
    rows = read_metrics(out)
    assert rows[-1]["loss/pretraining_avg"] < rows[0]["loss/pretraining_avg"] - 0.5
    hashes = json.loads((out / "run" / "config.json").read_text())
    assert hashes["pretraining_sha256"] == file_sha256(Path("sft.jsonl")) != hashes["data_sha256"]

    line = line.replace("--tuning full", "--tuning lora")
    road(f"ppo {line.replace('--steps 6', '--steps 1')} --out", tmp_path / "adapted")
    options = parse(PPO, f"{line} --out {tmp_path / 'other'}".split(), prog="ppo")
    scene = open_scene(options, "ppo", options.minibatches)
    critic = start_critic(options, scene)
    frozen = scene.frozen._replace(critic=critic.frozen)
    actor = make_text_actor(scene.base.lm, scene.score, scene.config, critic=critic.lm)
    hparams, key = RLHFHParams(), jax.random.key(0)
    batch = jax.tree.map(lambda x: x[:2], scene.encoded.train)
    state = actor.init_env(key, hparams)
    _, trajectory, _ = actor.rollout(critic.params, frozen, state, key, hparams, batch)
    obs, tokens = trajectory.obs, trajectory.action
    whole = [np.concatenate([obs.prompt.tokens, tokens[:, :2]], 1)]
    real = np.concatenate([obs.prompt.real, trajectory.mask[:, :2]], 1)
    score = jax.vmap(lambda t, r: scene.score(scene.judge.model, t, r))(*whole, real)
    np.testing.assert_allclose(trajectory.value[:, 2], score * trajectory.mask[:, 2], atol=1e-5)


def test_every_flag_of_ppo_reaches_its_hyperparameter(workshop, monkeypatch, tmp_path):
    monkeypatch.chdir(workshop)
    seen = []
    monkeypatch.setattr(
        online_methods, "run_online", lambda options, scene, algorithm, argv: seen.append(algorithm)
    )
    flags = "--learning-rate 0.5 --clip 0.3 --value-coef 0.7 --temperature 0.9 --kl-coef 0.11 --kl-target 3"
    flags += " --kl-horizon 77 --stop-penalty 2.5 --pretraining sft.jsonl --pretraining-coef 9"
    line = f"{RUN} --reward own_rewards:spaces {flags} --out {tmp_path / 'out'}"
    online_methods.run_ppo(parse(PPO, line.split(), prog="ppo"), [])
    given = {"learning_rate": 0.5, "clip": 0.3, "value_coef": 0.7, "temperature": 0.9, "kl_coef": 0.11}
    given |= {"kl_target": 3.0, "kl_horizon": 77.0, "stop_penalty": 2.5, "pretraining_coef": 9.0}
    assert seen[0].hparams == RLHFHParams()._replace(**given)
    assert seen[0].facts == {"pretraining": "sft.jsonl, 6 rows"}


def test_answers_end_at_any_of_the_models_stop_tokens(road, workshop, tmp_path, monkeypatch):
    """Of this model every byte is one, so that an answer is a single token."""
    monkeypatch.chdir(workshop)
    tiny = load_model("tiny")
    more = {"stop_tokens": range(1, 258), "tokenizer": tiny.tokenizer}
    save_model(tmp_path / "brief", tiny.config, tiny.params, **more)
    line = f"{RUN} --reward own_rewards:spaces --model {tmp_path / 'brief'} --out {tmp_path / 'out'}"
    scene = open_scene(parse(PPO, line.split(), prog="ppo"), "ppo", 1)
    assert set(scene.config.stop_tokens) == set(range(1, 258))
    road(f"best-of-n {line} --n 1 --tokens 4".replace(f"{RUN}", "--data prompts.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [len(row["completion"]) <= 1 for row in rows] == [True] * 6


def test_a_reward_model_of_other_tokens_is_refused(fails, tmp_path, monkeypatch):
    from jaxrl_align import data
    from jaxrl_align.cli import judges
    from jaxrl_align.cli.runs import online

    other = judges.Judge("other", None, tokenizer=data.character_tokenizer("abc"))
    monkeypatch.setattr(online, "load_judge", lambda name: other)
    line = fails(f"rloo {RUN} --reward other --out {tmp_path / 'out'}")[1]
    assert "--reward other must read the policy's tokens; got another tokenizer" in line


def test_a_function_of_the_working_directory_is_a_judge(road, workshop):
    assert load_judge("own_rewards:spaces").function([], ["a b"]) == [1.3]


def test_batches_read_every_row_once_a_pass_whenever_they_begin():
    data = {"x": np.arange(7), "y": np.arange(14).reshape(7, 2)}
    batches = shuffled_batches(data, batch_size=3, seed=0)
    whole = batches(0, 14)
    assert whole["x"].shape == (14, 3) and whole["y"].shape == (14, 3, 2)
    flat = whole["x"].reshape(-1)
    passes = [sorted(flat[i : i + 7]) for i in range(0, 42, 7)]
    assert passes == [list(range(7))] * 6 and len({tuple(flat[i : i + 7]) for i in range(0, 42, 7)}) > 4
    np.testing.assert_array_equal(whole["y"][..., 0], 2 * whole["x"])
    jax.tree.map(np.testing.assert_array_equal, batches(5, 4), jax.tree.map(lambda x: x[5:9], whole))
    assert (shuffled_batches(data, batch_size=3, seed=1)(0, 14)["x"] != whole["x"]).any()


def test_all_held_out_rows_come_in_batches_that_a_mesh_divides(monkeypatch):
    read = lambda rows, size: [b.tolist() for b in whole_batches(np.arange(rows), size)]
    assert (
        read(7, 3) == [[0, 1, 2], [3, 4, 5], [6]]
        and read(2, 3) == [[0, 1]]
        and read(4, 2) == [[0, 1], [2, 3]]
    )
    monkeypatch.setattr(datasets, "row_devices", lambda: 2)
    assert read(7, 4) == [[0, 1, 2, 3], [4, 5], [6]] and read(1, 4) == [[0]] and read(6, 4)[1:] == [[4, 5]]


def test_held_out_answers_weigh_alike_whatever_the_last_batch_holds():
    rollout = lambda params, frozen, state, key, hparams, batch: (None, None, {"r": jnp.mean(batch.tokens)})
    actor = SimpleNamespace(init_env=lambda key, hparams: None, rollout=rollout)
    prompts = PaddedTokens(np.array([[1], [2], [6]]), np.ones((3, 1)))
    scene = SimpleNamespace(encoded=SimpleNamespace(held_out=prompts), frozen=None)
    measure = online.measure_answers(scene, SimpleNamespace(actor=actor, hparams=None), 2)
    assert measure({}) == {"r": pytest.approx(3.0)}


def test_whole_prompts_are_held_out(tmp_path):
    rows = [{"prompt": f"p{i // 3}", "chosen": str(i), "rejected": "r"} for i in range(12)]
    write_rows(tmp_path / "rows.jsonl", rows)
    read = lambda path, skip_bad_rows: read_feedback(path, skip_bad_rows=skip_bad_rows)
    divided = divide_rows(DataOptions(str(tmp_path / "rows.jsonl"), "0.2"), read, 0)
    assert (len(divided.train), len(divided.held_out)) == (9, 3)
    assert not {row.prompt for row in divided.train} & {row.prompt for row in divided.held_out}
    other = divide_rows(DataOptions(str(tmp_path / "rows.jsonl"), "0.2"), read, 1)
    assert other.held_out != divided.held_out
    none = divide_rows(DataOptions(str(tmp_path / "rows.jsonl"), None), read, 0)
    assert len(none.train) == 12 and none.held_out == []
    same = [{"prompt": "p", "n": i} for i in range(4)]
    write_rows(tmp_path / "same.jsonl", same)
    one = divide_rows(DataOptions(str(tmp_path / "same.jsonl"), "0.25"), read_prompts, 0)
    assert (len(one.train), len(one.held_out)) == (3, 1)


@pytest.mark.parametrize(
    ("sizes", "share", "held_out"),
    [([80, *[1] * 20], "0.1", 10), ([80, *[1] * 20], "0.4", 20), ([5, 3], "0.1", 3)],
)
def test_a_prompt_of_many_rows_is_not_held_out_while_others_suffice(tmp_path, sizes, share, held_out):
    rows = [{"prompt": f"p{i}", "n": n} for i, size in enumerate(sizes) for n in range(size)]
    write_rows(tmp_path / "rows.jsonl", rows)
    for seed in range(5):
        divided = divide_rows(DataOptions(str(tmp_path / "rows.jsonl"), share), read_prompts, seed)
        assert (len(divided.train), len(divided.held_out)) == (len(rows) - held_out, held_out)


@pytest.mark.parametrize(
    ("given", "context", "chosen"),
    [
        ((None, None), 512, (32, 16)),
        ((40, None), 512, (40, 16)),
        ((None, 7), 512, (32, 7)),
        ((None, None), 40, (24, 16)),
        ((None, None), 24, (12, 12)),
    ],
)
def test_lengths_are_what_rows_need_and_the_context_holds(given, context, chosen):
    counts = np.array([[20, 5], [30, 12]])
    assert choose_lengths(counts, LengthOptions(*given), context) == chosen


def test_best_of_n_keeps_the_highest_score_and_writes_rows_that_sft_reads(
    road, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(choosing, "hint_form", lambda name, chat: f"; {name} of chat {chat}")
    out = tmp_path / "best.jsonl"
    how = "--reward own_rewards:spaces --n 4 --batch-size 4 --tokens 6 --out"
    road(f"best-of-n --model tiny --data prompts.jsonl {how}", out)
    said = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    own = load_judge("own_rewards:spaces").function
    assert [row["prompt"] for row in rows] == PROMPTS and rows[0]["word"] == " red"
    scores = own([], [row["completion"] for row in rows])
    np.testing.assert_allclose([row["score"] for row in rows], scores, rtol=1e-6)
    means = [float(line.split("score ")[1].split(",")[0]) for line in said[:3]]
    assert means == sorted(means) and means[2] == pytest.approx(np.mean(scores), rel=1e-3)
    assert said[2].endswith("nats away; own_rewards:spaces of chat False")
    assert said[1].endswith("at most 0.19 nats away") and said[0].startswith("best of 1: ")
    assert len(read_demonstrations(out).rows) == 6
