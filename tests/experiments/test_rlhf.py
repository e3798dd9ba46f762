"""The main job in miniature: it runs to its figures, continues to the same result, and refuses bad input."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.align import reward_model as rm
from jaxrl_align.runtime import Interval
from tests.experiments.loading import load, read_result

SMALL = {
    "seeds": 2,
    "vocab_size": 280,
    "width": 16,
    "layers": 1,
    "heads": 2,
    "context": 32,
    "prompt_length": 12,
    "response_length": 20,
    "pretrain_steps": 4,
    "sft_steps": 2,
    "comparisons": 10,
    "reward_steps": 2,
    "rlhf_steps": 5,
    "prompts_per_step": 4,
}
CORPUS = "\n\n".join(f"The {a} sees a {b}.  A {b} is near the {a}." for a in "abcdefghij" for b in "klmnopq")


@pytest.fixture(scope="module")
def rlhf():
    """The experiment's module, samples reduced to a few."""
    load("rlhf_setup").SAMPLES = 8
    return load("rlhf")


@pytest.fixture(scope="module")
def config(rlhf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rlhf")
    corpus = folder / "corpus.txt"
    corpus.write_text(CORPUS, encoding="utf-8")
    return rlhf.Config(out=str(folder / "run"), corpus=str(corpus), **SMALL)


@pytest.mark.slow
def test_walks_the_road_and_continues_to_the_same_result(rlhf, config, capsys):
    rlhf.main(config)
    out = Path(config.out)
    first = read_result(out)
    stages = first["tables"]["answers to held-out prompts"]
    assert tuple(stages) == rlhf.STAGES and len(first["checks"]) == 3
    assert stages["SFT"]["KL to SFT [nats]"]["value"] == pytest.approx(0.0, abs=1e-4)
    assert stages["RLHF"]["the KL is"] == "a controller steers it to 8"
    gain = first["tables"]["gold reward, paired by seed"]["RLHF less SFT"]["difference"]
    assert list(first["headline"].values()) == [gain]
    rise = stages["RLHF"]["gold reward"]["value"] - stages["SFT"]["gold reward"]["value"]
    assert gain["value"] == pytest.approx(rise)
    assert first["notes"][0].startswith("the reward model of the first seed: ")
    assert first["figures"] == ["gold_against_kl.png", "reward_model.png", "loss.png"]
    for name in first["figures"]:
        assert (out / name).stat().st_size > 5_000
    # The last stage's checkpoint and all that follows are lost; the stages before it are read back.
    for path in [*(out / "rlhf").glob("checkpoint_*"), out / "result.json"]:
        path.unlink()
    rlhf.main(dataclasses.replace(config, resume=True))
    assert read_result(out) == first
    assert "Held-out prompts" in capsys.readouterr().out


def test_stages_are_compared_by_seed_and_judged_by_the_ends_of_intervals(rlhf):
    report = load("rlhf_report")
    golds = {
        "pre-trained": 2.0,
        "SFT": 3.0,
        "RLHF": 4.0,
        "stop penalty alone": 3.1,
        "reward model alone": 3.9,
    }
    noise = np.array([[0.0, 0.2], [0.5, 0.7]])
    sample = lambda mean: SimpleNamespace(gold=mean + noise)
    gains = report.compare_stages({name: sample(mean) for name, mean in golds.items()})
    assert {name: round(gain.value, 6) for name, gain in gains.items()} == {
        "SFT less pre-trained": 1.0,
        "RLHF less SFT": 1.0,
        "stop penalty alone less SFT": 0.1,
        "stop penalty alone less RLHF": -0.9,
        "reward model alone less SFT": 0.9,
        "reward model alone less RLHF": -0.1,
    }
    up, level = Interval(0.1, 0.05, 0.15, "t"), Interval(0.1, -0.05, 0.25, "t")
    assert list(report.judge(gains, up).values()) == [True] * 5
    three = {name: gains[name] for name in ("SFT less pre-trained", "RLHF less SFT")}
    assert list(report.judge(three, level).values()) == [True, True, False]
    for name, at in (
        ("SFT less pre-trained", 0),
        ("stop penalty alone less SFT", 3),
        ("reward model alone less RLHF", 4),
    ):
        wide = gains | {name: Interval(0.1, -0.3, 0.3, "t")}
        assert [i for i, holds in enumerate(report.judge(wide, up).values()) if not holds] == [at]
    low = gains | {"reward model alone less RLHF": Interval(-0.1, -0.3, 0.1, "t")}
    assert list(report.judge(low, up).values())[4] is False
    assert not any(list(report.judge(gains | {"RLHF less SFT": level}, up).values())[i] for i in (1, 3, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"minibatches": 3}, "minibatches must divide prompts_per_step.*try minibatches=2 or 4"),
        ({"prompt_length": 30}, "must fit the context.*prompt_length=30.*shorten"),
        ({"seeds": 1}, "seeds must be at least 2"),
        ({"rlhf_steps": 0}, "rlhf_steps must be at least 1"),
        ({"heads": 3}, "heads must divide width"),
        ({"corpus": "nowhere.txt"}, "must be a text file"),
        ({"vocab_size": 100}, "vocab_size must be at least 258"),
    ],
)
def test_refuses_before_any_training(rlhf, config, tmp_path, change, message):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        rlhf.main(dataclasses.replace(config, out=str(out), **change))
    assert not out.exists()


def test_the_controls_are_halves_of_the_reward(rlhf, config, monkeypatch):
    """One pays 0 for every answer that stops; the other pays all that the model says, stopped or not."""
    setup = rlhf.Setup(config)
    params = setup.lm.init(jax.random.key(0))
    model = rm.RewardModel(rm.init_reward_params(jax.random.key(1), setup.lm, params), 2.0, 0.5)
    text = jnp.arange(2, 8), jnp.ones(6)
    folders, made = [], []

    def align(setup, folder, params, model, prompts, learner):
        folders.append(folder)
        return (float(setup.score(model, *text)), learner is setup.rlhf, None)

    monkeypatch.setattr(rlhf, "align", align)
    monkeypatch.setattr(rlhf.Setup, "make_rlhf", lambda self, text: made.append(text.missing_stop))
    setup.rlhf = object()
    paid = rlhf.align_controls(setup, SimpleNamespace(sub=str), params, model, None)
    assert paid == {
        "stop penalty alone": (0.0, True),
        "reward model alone": (float(setup.score(model, *text)), False),
    }
    assert made == ["keep"] and setup.text.missing_stop == "replace" and folders == list(paid)
    assert paid["reward model alone"][0] != 0.0


def test_refuses_an_empty_corpus(rlhf, config, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n", encoding="utf-8")
    with pytest.raises(ValueError, match="corpus is empty.*give a file with text"):
        rlhf.main(dataclasses.replace(config, out=str(tmp_path / "run"), corpus=str(empty)))


@pytest.mark.slow
def test_refuses_the_folder_of_another_configuration(rlhf, config, tmp_path):
    config = dataclasses.replace(config, out=str(tmp_path / "run"))
    config.open_folder()
    before = (Path(config.out) / "config.json").read_bytes()
    with pytest.raises(ValueError, match="made with width=16, but this run has width=32.*--out"):
        rlhf.main(dataclasses.replace(config, width=32, resume=True))
    assert (Path(config.out) / "config.json").read_bytes() == before
