"""The comparison of ways of tuning: its rows, its counts, its choice of rates, and a run in miniature."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.data.files import DATA_VARIABLE
from jaxrl_align.data.tokens.vocabularies import byte_tokenizer
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.runtime import Interval
from tests.data.test_labelled_texts import write_texts
from tests.experiments.loading import load

peft, task, ways = load("peft"), load("peft_task"), load("peft_ways")
reports = load("peft_report")
BYTES = byte_tokenizer()


@pytest.fixture
def data(tmp_path, monkeypatch):
    """SST-2 in miniature, whose labels follow from one letter."""
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    rng = np.random.default_rng(0)
    lines = [f"{c} {'ab'[c] * 3}{rng.integers(100)}" for c in rng.integers(2, size=60)]
    write_texts(
        tmp_path, stsa_binary_train=lines[:40], stsa_binary_dev=lines[40:50], stsa_binary_test=lines[50:]
    )
    return tmp_path


@pytest.fixture
def words(monkeypatch):
    """Labels that differ in their first byte."""
    wording = task.WORDINGS["sst2"]._replace(ending=":", words=("-", "+"))
    monkeypatch.setitem(task.WORDINGS, "sst2", wording)


def test_a_row_ends_with_its_word_and_nothing_else_is_predicted(data, words):
    made = task.make_task("sst2", BYTES, 7, (4, 100))
    assert made.train.tokens.shape == (40, 7) and made.validation.tokens.shape == (4, 7)
    assert made.test.tokens.shape == (10, 7)
    for tokens, real, predict in zip(*made.test[:3], strict=True):
        last = int(real.sum()) - 1
        text = BYTES.decode(tokens[1:last])
        assert tokens[0] == BYTES.stop_token and text[:3] in ("aaa", "bbb") and text[-1] == ":"
        assert tokens[last] == made.words["ab".index(text[0])]
        np.testing.assert_array_equal(predict, np.arange(7) == last)
    with pytest.raises(ValueError, match="length must leave room for text beside ':'"):
        task.make_task("sst2", BYTES, 3, (4, 4))
    with pytest.raises(ValueError, match="tasks must be among sst2, trec; got 'x'"):
        task.make_task("x", BYTES, 7, (4, 4))


def test_words_that_begin_alike_are_refused(data):
    with pytest.raises(ValueError, match="must begin with tokens of their own"):
        task.make_task("sst2", BYTES, 20, (4, 4))


def test_the_answer_is_the_likeliest_word(data, words):
    """Read row by row without padding, and over all words of the vocabulary."""
    lm = make_transformer(TransformerConfig(BYTES.vocab_size, width=16, layers=1, heads=2, context=8))
    params = jax.tree.map(lambda x: 5 * x, jax.jit(lm.init)(jax.random.key(0)))
    made = task.make_task("sst2", BYTES, 8, (4, 10))
    read = jax.jit(lambda text: lm.logits(params, lm.encode(params, text)[0][-1]))
    hits = []
    for tokens, real in zip(np.array(made.test.tokens), np.array(made.test.real), strict=True):
        text = tokens[: int(real.sum()) - 1]
        logits = np.array(read(text))
        hits.append(logits[tokens[len(text)]] >= logits[np.array(made.words)].max())
    assert 0 < np.mean(hits) < 1
    found = jax.jit(task.make_accuracy(lm, made.words))(params, made.test)
    assert found == pytest.approx(np.mean(hits))


def test_what_each_way_trains_is_counted():
    """Two layers of width 8: per layer 4 x 64 of attention and 2 x 256 of the feed-forward."""
    lm = make_transformer(TransformerConfig(10, width=8, layers=2, heads=2, context=24))
    shapes = jax.eval_shape(lm.init, jax.random.key(0))
    layer = 4 * (64 + 8) + (256 + 32) + (256 + 8) + 4 * 8
    expected = {
        "full": 2 * layer + 10 * 8 + 24 * 8 + 2 * 8,
        "head": 10 * 8,
        "norms": (4 * 8) * 2 + 2 * 8,
        "top layer": layer,
        "biases": 2 * (5 * 8 + 32 + 2 * 8) + 8,
        "LoRA 2": 2 * 2 * (4 * 16 + 2 * 40),
        "IA3": 2 * (8 + 8 + 32),
        "prompt": 20 * 8,
        "random prompt": 20 * 8,
        "prefix": 2 * 2 * 20 * 8,
        "adapters": 2 * 2 * (2 * 8 * 16 + 16 + 8),
        "DoRA 4": 4 * 2 * (4 * 16 + 2 * 40) + 2 * (5 * 8 + 32),
    }
    made = ways.make_ways(lm, (2,))
    assert {name: ways.count(way, lm, shapes) for name, way in made.items()} == {
        name: (number, 4 * number) for name, number in expected.items()
    }
    assert {ways.kind_of(name) for name in made} == set(reports.KINDS)
    llama = make_transformer(TransformerConfig(10, width=8, norm="rms", biased=(), layers=2, heads=2))
    assert "biases" not in ways.make_ways(llama, (2,)) and "top half" not in made


@pytest.mark.parametrize("name", ["head", "top half", "LoRA 2"])
def test_a_way_starts_as_the_base(name):
    from jaxrl_align.nets.adapters import overlay

    lm = make_transformer(TransformerConfig(10, width=8, layers=4, heads=2, context=24))
    way = ways.make_ways(lm, (2,))[name]

    @jax.jit
    def both(key):
        params = lm.init(key)
        start = way(key, lm, params)
        logits = lambda lm, params: lm.logits(params, lm.encode(params, jnp.arange(5))[0])
        return logits(start.lm, overlay(start.frozen, start.part)), logits(lm, params)

    np.testing.assert_allclose(*both(jax.random.key(0)), atol=1e-6)


def test_the_rate_is_the_smallest_near_the_best_of_those_that_stayed_finite():
    """Of 100 rows .75 +- .043: .72 is near, .70 is not."""
    result = {
        "parameters": 3,
        "bytes": 12,
        "validation": [[0.70, 0.70], [0.70, 0.74], [0.75, 0.75], [0.9, 0.9]],
        "test": [[0.1, 0.1], [0.2, 0.4], [1.0, 1.0], [1.0, 1.0]],
        "nats": [[2.0, 2.0], [2.5, 3.5], [5.0, 6.0], [float("nan"), 9.0]],
    }
    table = reports.chosen({"untuned": {"test": 0.5, "nats": 2.0}, "x": result}, 100)
    assert list(table) == ["x"] and table["x"]["rate"] == 1
    np.testing.assert_allclose(table["x"]["accuracy"], [20, 40])
    np.testing.assert_allclose(table["x"]["forgetting"], [0.5, 1.5])
    assert reports.choose(result, 10_000) == 2
    assert reports.rank_correlation([1, 2, 3], [10, 30, 20]) == pytest.approx(0.5)
    assert reports.rank_correlation([1, 1, 3], [10, 20, 30]) == pytest.approx(0.75**0.5)


def test_the_verdict_is_that_of_bytes_forgetting_and_prompts():
    near = lambda value: Interval(value, value - 0.1, value + 0.1, "t")
    sizes = {"full": 1000, "LoRA 64": 900, "LoRA 4": 50, "norms": 20, "prompt": 60}
    found = {"accuracy, own rates": near(-0.9), "forgetting, own rates": near(0.5)}
    found |= {"forgetting at 0.001": near(0.4), "forgetting at 0.1": near(0.3)}
    behind = {"full": near(-50), "norms": near(-4)}
    judged = lambda *x: list(reports.judge(*x).values())
    assert judged(sizes, found, behind) == [True] * 4
    own = found | {"forgetting, own rates": near(-0.5)}
    assert judged(sizes | {"norms": 100}, own, behind) == [False, True, False, True]
    level = found | {"forgetting, own rates": near(0.05)}
    assert judged(sizes, level, behind) == [True, True, False, True]
    one = found | {"forgetting at 0.1": near(0.05)}
    assert judged(sizes, one, behind | {"norms": near(0)}) == [True, False, True, False]
    assert judged(sizes, found, {}) == [True] * 3


@pytest.mark.slow
def test_peft_in_miniature(data, words, capsys):
    """Pre-trained here and tuned in two ways; continued without work; tuned once more from its folder."""
    text = data / "text.txt"
    text.write_text("aaa: bbb " * 200)
    settings = dict(
        text=str(text),
        ways=("full", "prompt"),
        tasks=("sst2",),
        lengths=(8,),
        seeds=2,
        steps=20,
        rates=(1e-3, 1e-2),
        validation_rows=10,
        test_rows=10,
        held_out_tokens=100,
        vocabulary=260,
        layers=1,
        heads=2,
        width=16,
        context=120,
        pretrain_steps=2,
    )
    peft.main(peft.Config(**settings, out=str(data / "run")))
    result = json.loads((data / "run" / "result.json").read_text())
    every = {
        way: json.loads((data / "run" / f"sst2_{way}.json").read_text())
        for way in ("untuned", "full", "prompt")
    }
    assert np.shape(every["full"]["nats"]) == np.shape(every["prompt"]["test"]) == (2, 2)
    assert every["full"]["loss"] < every["prompt"]["loss"]
    rows, correlations, rates = result["tables"].values()
    assert list(rows) == ["prompt", "full", "untuned"] and list(rates) == ["full", "prompt"]
    assert rows["untuned"]["accuracy [%]"] == 100 * every["untuned"]["test"]
    index = [1e-3, 1e-2].index(rows["full"]["rate"])
    accuracy, nats = (
        np.array([every[way][what] for way in every if way != "untuned"]) for what in ("test", "nats")
    )
    assert rows["full"]["accuracy [%]"]["value"] == pytest.approx(100 * accuracy[0, index].mean())
    assert rates["prompt"]["0.01: forgetting"] == pytest.approx(nats[1, 1].mean() - every["untuned"]["nats"])
    assert rates["full"]["0.001: accuracy"] == pytest.approx(100 * np.mean(every["full"]["validation"][0]))
    expected = np.sign(nats[0, 1] - nats[1, 1]).mean()
    assert correlations["forgetting at 0.01"]["correlation"]["value"] == pytest.approx(expected)
    (headline,), (baseline,) = result["headline"].items(), result["baselines"].items()
    assert headline == (
        "sst2: forgetting of prompt less full, paired [nats a token]",
        rows["prompt"]["forgetting less full"],
    )
    assert baseline[1] == rows["prompt"]["less full"] and rows["full"]["less full"]["value"] == 0
    assert len(result["checks"]) == 4
    assert np.ptp(np.array(every["full"]["nats"])[1]) > 0, "every seed has batches of its own"
    assert (data / "run" / "peft.png").stat().st_size > 5_000
    assert "rank correlation with the trained weights" in capsys.readouterr().out
    again = peft.Config(**settings, out=str(data / "again"), base=str(data / "run"))
    base = task.own_base(again, again.open_folder())
    untuned = peft.measure_untuned(base, task.make_task("sst2", base.tokenizer, 8, (10, 10)))
    assert untuned["nats"] == pytest.approx(every["untuned"]["nats"], rel=1e-6)
    with pytest.raises(ValueError, match="ways must be among full, .*; got x"):
        peft.main(peft.Config(**settings | {"ways": ("x",)}, out=str(data / "bad"), base=str(data / "run")))


@pytest.mark.optimised
@pytest.mark.slow
def test_a_published_model_is_tuned_in_turn(real_model, data, monkeypatch):
    from jaxrl_align.runtime.huggingface import find_model

    (data / "text.txt").write_text("A cat sat there. " * 400)
    config = peft.Config(
        model=str(find_model()),
        text=str(data / "text.txt"),
        ways=("norms",),
        tasks=("sst2",),
        lengths=(12,),
        seeds=2,
        steps=2,
        batch_size=2,
        rates=(1e-3,),
        validation_rows=4,
        test_rows=4,
        held_out_tokens=100,
        out=str(data / "run"),
    )
    peft.main(config)
    result = json.loads((data / "run" / "result.json").read_text())
    rows = next(iter(result["tables"].values()))
    assert rows["norms"]["trained"] == 35_136 and np.isfinite(
        rows["norms"]["forgetting [nats a token]"]["value"]
    )
    assert len(result["checks"]) == 3
