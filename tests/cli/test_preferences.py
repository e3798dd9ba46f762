"""The commands of the direct losses: dpo, ipo, kto, orpo, simpo, slic."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import nets
from jaxrl_align.cli.runs.direct_losses import (
    DPO,
    IPO,
    KTO,
    METHODS,
    ORPO,
    SimPO,
    as_labels,
    as_pairs,
    choose_hparams,
    read_in_parts,
)
from jaxrl_align.feedback import Comparison, Correction, Label, Ranking
from jaxrl_align.runtime.cli import parse
from jaxrl_align.runtime.huggingface import load_adapter, load_model
from tests.cli.conftest import PROMPTS, WORDS, config, tokenizer, write_rows

RUN = "--model tiny --data pairs.jsonl --held-out pairs.jsonl --batch-size 6 --samples 0 --rank 2"
OTHERS = WORDS[1:] + WORDS[:1]


@jax.jit
def answer_log_probs(params):
    """Return the log-probabilities [6, 2] of chosen and rejected words, each text read alone."""
    lm, tok = nets.make_transformer(config()), tokenizer()
    tokens, said = np.zeros((2, 6, 2, 20), int)
    for row, (prompt, *words) in enumerate(zip(PROMPTS, WORDS, OTHERS, strict=True)):
        for side, word in enumerate(words):
            begin, end = tok.encode(prompt), [*tok.encode(f" {word}"), 1]
            tokens[row, side, : len(begin + end)] = begin + end
            said[row, side, len(begin) : len(begin + end)] = 1
    read = jax.vmap(jax.vmap(lambda row: lm.encode(params, row)[0]))
    log_probs = jax.nn.log_softmax(lm.logits(params, read(jnp.array(tokens))))[:, :, :-1]
    each = jnp.take_along_axis(log_probs, jnp.array(tokens)[:, :, 1:, None], 3)[..., 0]
    return jnp.sum(each * said[:, :, 1:], -1)


def test_dpo_by_hand(road, tmp_path):
    """The held-out loss after training is the paper's formula over the folder that was written."""
    road(f"dpo {RUN} --steps 3 --every 3 --learning-rate 0.1 --beta 0.5 --out", tmp_path / "out")
    model = load_model("tiny")
    part, constants = load_adapter(tmp_path / "out", model.config, model.params)
    policy = answer_log_probs(nets.overlay(nets.overlay(model.params, constants), part))
    ratio = policy - answer_log_probs(model.params)
    margin = 0.5 * (ratio[:, 0] - ratio[:, 1])
    held_out = json.loads((tmp_path / "out" / "run" / "held_out.json").read_text())
    np.testing.assert_allclose(held_out["0"]["loss"], np.log(2), rtol=1e-5)
    np.testing.assert_allclose(held_out["3"]["loss"], np.mean(-jax.nn.log_sigmoid(margin)), rtol=1e-4)
    np.testing.assert_allclose(held_out["3"]["rewards/margins"], margin.mean(), rtol=1e-3)
    assert held_out["3"]["rewards/margins"] > 0.01


@pytest.mark.parametrize("method", ["dpo", "kto --undesirable-weight 0"])
def test_held_out_rows_are_judged_alike_however_batches_are_parted(road, tmp_path, method):
    """Six pairs, or twelve labels: parts and batches do not divide them; KTO's z is of whole batches."""
    found = []
    for parts in (1, 4):
        line = f"{method} {RUN} --batch-size 8 --steps 1 --every 1 --learning-rate 0.1 --microbatches {parts}"
        road(f"{line} --out", tmp_path / str(parts))
        found.append(json.loads((tmp_path / str(parts) / "run" / "held_out.json").read_text())["1"])
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-5)
    assert abs(found[0]["rewards/margins"]) > 1e-4 and found[0].get("kl", 1.0) > 0


def test_held_out_rows_are_read_few_at_a_time():
    """Also in a last batch of any size, of which KTO takes one mean."""
    asked = []
    objective = lambda lm, *, microbatches: lambda *given: asked.append(microbatches)
    read = read_in_parts(METHODS[KTO]._replace(objective=objective), None, 3)
    for count in (8, 7, 6, 2, 1):
        read({}, None, np.ones((count, 2)), 0, 0)
    assert asked == [4, 7, 2, 1, 1]


def test_a_single_answer_is_too_few_for_kto(fails, tmp_path):
    rows = [{"prompt": p, "completion": w, "label": w == "red"} for p, w in zip(PROMPTS, WORDS, strict=True)]
    write_rows(tmp_path / "rows.jsonl", rows)
    line = f"kto --model tiny --data {tmp_path / 'rows.jsonl'} --out {tmp_path / 'out'}"
    code, said = fails(line)
    assert code == 2 and "KTO needs at least two answers" in said and "; --held-out 0.1 gives one;" in said
    assert not (tmp_path / "out").exists()


def test_orpo_without_its_odds_ratio_imitates():
    line = "--model m --data d --out o --beta 0"
    with_beta = lambda kind: parse(kind, line.split(), prog="x")
    assert choose_hparams(with_beta(ORPO)).beta == 0
    for kind in (DPO, IPO, KTO, SimPO):
        with pytest.raises(ValueError, match="--beta must be above 0"):
            choose_hparams(with_beta(kind))


def test_rows_of_other_kinds_become_pairs_and_labels():
    ranking = Ranking("p", ["c", "a", "b"], [3, 1, 1], source="f:1")
    pairs = [Comparison("p", "a", "c", source="f:1"), Comparison("p", "b", "c", source="f:1")]
    assert as_pairs([ranking]) == pairs
    correction = Correction("p", "worse", "better", source="f:2")
    assert as_pairs([correction]) == [Comparison("p", "better", "worse", source="f:2")]
    label = Label("p", "a", True)
    assert as_labels([pairs[0], label]) == [
        Label("p", "a", True, source="f:1"),
        Label("p", "c", False, source="f:1"),
        label,
    ]
    offering = as_pairs([ranking._replace(tools=["t"]), correction._replace(tools=["t"])])
    assert [row.tools for row in offering + as_labels(offering)] == 9 * [["t"]]


@pytest.mark.slow
@pytest.mark.parametrize("method", [method.name for method in METHODS.values()])
def test_every_method_learns_its_pairs(road, tmp_path, method):
    data = "--tuning full --steps 6 --every 6 --learning-rate 0.01"
    road(f"{method} {RUN} {data} --out", tmp_path / "out")
    held_out = json.loads((tmp_path / "out" / "run" / "held_out.json").read_text())
    assert held_out["6"]["loss"] < held_out["0"]["loss"]
    assert held_out["6"]["rewards/margins"] > held_out["0"]["rewards/margins"]
    load_model(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["dora", "qlora", "ia3", "prompt", "prefix"])
def test_every_tuning_writes_a_folder_that_is_read_again(road, tmp_path, tuning):
    road(f"dpo {RUN} --tuning {tuning} --virtual-tokens 3 --steps 2 --every 2 --out", tmp_path / "out")
    model = load_model("tiny")
    assert load_adapter(tmp_path / "out", model.config, model.params).part
    road("generate --prompt say --tokens 4 --model", tmp_path / "out")


def test_ratings_are_no_preferences(fails, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"prompt": p, "completion": "c", "score": 3} for p in PROMPTS])
    code, line = fails(f"dpo --model tiny --out {tmp_path / 'out'} --data", tmp_path / "rows.jsonl")
    assert code == 2 and "rows must be pairs or rankings; got a Rating" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.optimised
@pytest.mark.slow
def test_dpo_on_a_published_model_writes_an_adapter_that_is_read_again(road, tmp_path, real_folder, capsys):
    out = tmp_path / "out"
    settings = "--held-out none --samples 1 --sample-tokens 4 --steps 2 --every 2 --batch-size 2"
    road(f"dpo --data pairs.jsonl --chat {settings} --out {out} --model", real_folder)
    said = capsys.readouterr().out
    assert "lora: 460,800 of 134,515,008 weights" in said and "is no setting" not in said
    model = load_model(real_folder)
    part, constants = load_adapter(out, model.config, model.params)
    b = np.asarray(part["layers"]["query"]["lora"]["b"])
    assert np.isfinite(b).all() and 1e-6 < np.abs(b).max() < 1e-3  # two steps of 1e-4 at most
    road("generate --prompt Hello --chat --tokens 4 --model", out)
    assert "1 completions" in capsys.readouterr().out
