"""The command `sft`, and what every training command shares: plan, run, best step, card, resuming."""

import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import nets
from jaxrl_align.cli import run_command
from jaxrl_align.cli.datasets import divide_rows
from jaxrl_align.cli.options import DataOptions
from jaxrl_align.cli.runs import driving, fine_tuning
from jaxrl_align.cli.runs.estimates import halving_flags
from jaxrl_align.feedback import read_demonstrations
from jaxrl_align.runtime import loop, restore
from jaxrl_align.runtime.huggingface import load_adapter, load_model
from tests.cli.conftest import PROMPTS, WORDS, config, tokenizer, write_rows
from tests.tiny import bits

RUN = "sft --model tiny --data sft.jsonl --steps 4 --every 3 --batch-size 2 --rank 2 --sample-tokens 4"
SETTINGS = f"{RUN} --learning-rate 0.3 --held-out sft.jsonl --samples 2 --out"
"""It learns fast, and is judged by what it has seen, so that held-out losses differ."""


@pytest.fixture(scope="module")
def done(workshop, tmp_path_factory):
    """The folder of one run."""
    out = tmp_path_factory.mktemp("sft") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workshop)
        run_command([*SETTINGS.split(), str(out)])
    return out


def words_loss(params):
    """Return the loss of the completions of sft.jsonl, each ending in the stop token 1."""
    lm, tok = nets.make_transformer(config()), tokenizer()
    tokens, said = np.zeros((2, 6, 20), int)
    for row, (prompt, word) in enumerate(zip(PROMPTS, WORDS, strict=True)):
        begin, end = tok.encode(prompt), [*tok.encode(f" {word}"), 1]
        tokens[row, : len(begin + end)] = begin + end
        said[row, len(begin) : len(begin + end)] = 1
    hidden, _ = jax.vmap(lm.encode, (None, 0))(params, jnp.array(tokens))  # what is behind is not read
    log_probs = jax.nn.log_softmax(lm.logits(params, hidden))[:, :-1]
    nats = -jnp.take_along_axis(log_probs, jnp.array(tokens)[:, 1:, None], 2)[..., 0]
    return jnp.sum(nats * said[:, 1:]) / said.sum()


words_loss = jax.jit(words_loss)


def whole(folder):
    model = load_model("tiny")
    part, constants = load_adapter(folder, model.config, model.params)
    return nets.overlay(nets.overlay(model.params, constants), part)


def part_of(folder):
    model = load_model("tiny")
    return load_adapter(folder, model.config, model.params).part


def test_held_out_losses_are_those_of_the_completions(done, monkeypatch, workshop):
    monkeypatch.chdir(workshop)
    found = json.loads((done / "run" / "held_out.json").read_text())
    assert list(found) == ["0", "3", "4"]
    np.testing.assert_allclose(found["0"]["loss"], words_loss(load_model("tiny").params), rtol=1e-5)
    best = min(("3", "4"), key=lambda step: found[step]["loss"])
    np.testing.assert_allclose(found[best]["loss"], words_loss(whole(done)), rtol=1e-5)
    assert found[best]["loss"] < found["0"]["loss"] - 0.02


@pytest.mark.parametrize("how", ["--dropout 0.5", "--batch-size 8 --microbatches 4", "--batch-size 4"])
def test_all_held_out_rows_are_read_without_dropout(road, tmp_path, how):
    """Six rows, which neither four parts nor batches of four divide."""
    road(
        f"{RUN} --learning-rate 0.3 --held-out sft.jsonl --samples 0 {how} --steps 3 --out", tmp_path / "out"
    )
    found = json.loads((tmp_path / "out" / "run" / "held_out.json").read_text())
    np.testing.assert_allclose(found["3"]["loss"], words_loss(whole(tmp_path / "out")), rtol=1e-5)


def test_a_run_is_judged_by_the_same_rows_to_its_end(road, fails, tmp_path, monkeypatch):
    def follow(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(driving, "follow", follow)
    own = tmp_path / "own.jsonl"
    line = f"{RUN} --held-out {own} --out {tmp_path / 'out'}"
    write_rows(own, [{"text": "one"}])
    assert fails(line)[0] == fails(f"{line} --resume")[0] == 130
    write_rows(own, [{"text": "two"}])
    code, said = fails(f"{line} --resume")
    assert code == 2 and "was made with held_out_sha256='" in said


def test_a_share_holds_out_the_same_rows_to_its_end(road, fails, tmp_path, monkeypatch):
    """Which ones an older version held out is not known: its runs are not continued with others."""
    line = f"{RUN} --held-out 0.4 --out {tmp_path / 'out'}"
    monkeypatch.setattr(driving, "follow", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    assert fails(line)[0] == fails(f"{line} --resume")[0] == 130
    path = tmp_path / "out" / "run" / "config.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in kept.items() if k != "held_out_sha256"}))
    code, said = fails(f"{line} --resume")
    assert code == 2 and "was made with no held_out_sha256, but this run has held_out_sha256='" in said
    two = [divide_rows(DataOptions("sft.jsonl", "0.4"), read_demonstrations, seed).hashes for seed in (0, 1)]
    assert two[0]["data_sha256"] == two[1]["data_sha256"] == kept["data_sha256"]
    assert two[0]["held_out_sha256"] != two[1]["held_out_sha256"]


def test_the_folder_holds_model_card_and_run(done):
    assert {file.name for file in done.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("README.md", "run"),
    }
    assert json.loads((done / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert len((done / "run" / "metrics.jsonl").read_text().splitlines()) == 4
    settings = json.loads((done / "run" / "config.json").read_text())
    assert settings["command"] == "sft" and settings["rank"] == 2 and "config" not in settings
    rows = [json.loads(line) for line in (done / "run" / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 0, 3, 3, 4, 4]
    assert [row["prompt"] for row in rows[:2]] == PROMPTS[:2]


def test_in_half_precision_and_unrolled_it_learns_the_same(done, road, tmp_path, monkeypatch):
    seen = []
    make = fine_tuning.make_lm_learner
    keep = lambda lm, *args, **how: seen.append(lm) or make(lm, *args, **how)
    monkeypatch.setattr(fine_tuning, "make_lm_learner", keep)
    run_command([*SETTINGS.split(), str(tmp_path / "out"), "--dtype", "bfloat16", "--unroll"])
    (lm,) = seen
    assert (lm.config.dtype, lm.config.unroll, lm.config.remat) == ("bfloat16", True, False)
    half, full = part_of(tmp_path / "out"), part_of(done)
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    found = [json.loads((f / "run" / "held_out.json").read_text()) for f in (tmp_path / "out", done)]
    for step in ("0", "3"):
        np.testing.assert_allclose(found[0][step]["loss"], found[1][step]["loss"], rtol=0.02)
    apart = [
        np.linalg.norm(x - y) / np.linalg.norm(y)
        for x, y in zip(*map(jax.tree.leaves, (half, full)), strict=True)
    ]
    assert 0 < max(apart) < 0.2


def test_the_card_says_what_was_done(done, workshop):
    card = (done / "README.md").read_text()
    held_out = json.loads((done / "run" / "held_out.json").read_text())
    assert card.startswith('---\nbase_model: "tiny"\n')
    for said in (
        f"{held_out['0']['loss']:.4g}",
        "| file | sft.jsonl, sha256 ",
        "| rows | 6 train, 6 held out |",
        f"jaxrl-align {SETTINGS}",
        "| rank | 2 |",
        "| learning_rate | 0.3 |",
        "Licence: to be stated",
    ):
        assert said in card, said
    assert str(workshop) not in card


def test_a_run_that_was_interrupted_continues_in_the_same_bits(done, road, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    write = loop.write_history

    def interrupt(writers, step, metrics):
        write(writers, step, metrics)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop, "write_history", interrupt)
    with pytest.raises(SystemExit) as stop:
        road(SETTINGS, out)
    assert stop.value.code == 130 and "--resume continues" in capsys.readouterr().err
    assert not (out / "adapter_config.json").exists()
    monkeypatch.setattr(loop, "write_history", write)
    road(SETTINGS, out, "--resume")
    assert bits(part_of(out)) == bits(part_of(done))
    for name in ("metrics.jsonl", "held_out.json", "samples.jsonl"):
        assert (out / "run" / name).read_bytes() == (done / "run" / name).read_bytes(), name


def test_a_run_that_meets_a_nan_ends_and_its_replay_names_the_operation(road, tmp_path, capsys):
    out, line = tmp_path / "out", SETTINGS.replace("--learning-rate 0.3", "--learning-rate 1e38")
    with pytest.raises(SystemExit) as stop:
        road(line, out)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "lower the learning rate" in said and "--replay finds" in said
    assert not (out / "adapter_config.json").exists()
    with pytest.raises(SystemExit) as stop:
        road(line, out, "--replay")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "the state before step" in said
    assert "the first nan was made by" in said or "an infinity came first" in said
    assert list((out / "run" / "fault").glob("checkpoint_*.npz"))


def test_a_finished_run_writes_its_model_again(done, road, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(done, out)
    (out / "adapter_model.safetensors").unlink()
    road(SETTINGS, out, "--resume")
    assert bits(part_of(out)) == bits(part_of(done))


def test_the_best_step_is_written_not_the_last(road, tmp_path, monkeypatch, capsys):
    worse = iter([0.5, 0.1, 0.3])
    monkeypatch.setattr(fine_tuning, "make_measure", lambda *args: lambda params: {"loss": next(worse)})
    road(SETTINGS, tmp_path / "out", "--samples", "0")
    assert "of step 3 of 4, the best by held-out loss: 0.1 (before training 0.5)" in capsys.readouterr().out
    part = part_of(tmp_path / "out")
    kept, step = restore(tmp_path / "out" / "run" / "best", part)
    assert step == 3 and bits(kept) == bits(part)


def test_one_step_by_hand(road, tmp_path):
    """All weights, one step on all rows: Adam's first step is the rate times the gradient's sign."""
    line = "sft --model tiny --data sft.jsonl --held-out None --samples 0 --tuning full --steps 1"
    road(f"{line} --batch-size 6 --learning-rate 0.01 --out", tmp_path / "out")
    start = load_model("tiny").params
    grads = jax.jit(jax.grad(words_loss))(start)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    assert norm > 1.0  # so that it is clipped

    def step(p, g):
        g = g / norm
        return p - 0.01 * g / (jnp.abs(g) + 1e-8)

    wanted = jax.tree.map(step, start, grads)
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, atol=2e-4),
        load_model(tmp_path / "out").params,
        wanted,
    )


@pytest.mark.parametrize(
    ("of", "hints"),
    [
        ((8, 2, "--microbatches"), ("--batch-size 4", "--microbatches 4")),
        ((8,), ("--batch-size 4",)),
        ((6, 2, "--microbatches"), ()),  # neither 3 rows in 2 parts nor 6 in 4
        ((8, 8, "--microbatches"), ()),
    ],
)
def test_what_halves_the_memory_is_what_the_command_would_take(of, hints):
    assert halving_flags(*of) == hints


def test_the_plan_comes_before_the_run(road, tmp_path, capsys, monkeypatch):
    def follow(*args):
        raise ValueError("nothing is compiled")

    monkeypatch.setattr(driving, "follow", follow)
    with pytest.raises(SystemExit):
        road(SETTINGS, tmp_path / "out")
    said = capsys.readouterr().out
    for line in (
        "6 train, 6 held out",
        "rows of 16, 16, 16 tokens (median, 95%, longest), padded to 16",
        "lora: 64 of 2,536 weights",
        "4 of 2 rows, 1.3 passes; learning rate 0.3",
        "--batch-size 1 or --microbatches 2",
        "which plain texts do not use without --chat",
    ):
        assert line in said, said
    assert not (tmp_path / "out").exists()  # no step was taken: nothing is in the corrected command's way
    with pytest.raises(SystemExit):
        road(SETTINGS.replace("--batch-size 2", "--batch-size 1"), tmp_path / "out")
    said = capsys.readouterr().out
    assert "; --remat: " in said and "; : " not in said  # one row is not halved
