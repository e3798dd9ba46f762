"""HELM's fields of a task, asked of scorers and writers that need no model: every figure by hand."""

import functools
import itertools
import json

import jax
import numpy as np
import pytest

from jaxrl_align.data import byte_tokenizer
from jaxrl_align.evaluate import (
    AskedItems,
    Asker,
    ItemResult,
    OptionScores,
    ask_items,
    load_task,
    read_items,
    report_task,
    task_report,
)
from jaxrl_align.evaluate.measures import item_metrics
from jaxrl_align.evaluate.measures.calibration import expected_calibration_error
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.runtime.evidence import describe_cores
from jaxrl_align.runtime.statistics import wilson_interval

TOKENIZER = byte_tokenizer()
LM = make_transformer(TransformerConfig(258, width=4, layers=1, heads=1, context=64))
HEAD = """
name = "my"
source = "ours"
licence = "CC0"
template = "{text}:"
[[test]]
format = "jsonl"
path = "rows.jsonl"
"""
CHOICE = f"""
kind = "choice"
metrics = ["accuracy"]
{HEAD}
[[examples]]
format = "jsonl"
path = "examples.jsonl"
[options]
choices = {{ "0" = "bad", "1" = "good" }}
"""
SCALE = f'kind = "choice"\nmetrics = ["spearman"]\n{HEAD}\n[options]\nnumbers = [0, 5]\n'
WRITTEN = f'kind = "generate"\nmetrics = ["exact_match"]\n{HEAD}\n[answer]\nfield = "label"\n'
TEXTS = ("fine film", "fine Emily", "dull THE", "Fine", "it is dull")
SHOUT = {
    "shout": lambda text, random: text.upper(),
    "quiet": lambda text, random: text.lower(),
    "none": lambda text, random: text,
}


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(task_report, "ROBUSTNESS", SHOUT)
    monkeypatch.setattr(task_report, "FAIRNESS", {})
    monkeypatch.setattr(item_metrics, "bootstrap", functools.partial(item_metrics.bootstrap, draws=20))

    def write(text, labels=(1, 1, 0, 1, 0), texts=TEXTS):
        rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "examples.jsonl").write_text(json.dumps({"text": "A FINE one", "label": 1}) + "\n")
        (tmp_path / "my.toml").write_text(text)
        return load_task(tmp_path / "my.toml")

    return write


@pytest.fixture
def asked(monkeypatch):
    """What was read in each call; the model takes "good" where the question says "fine" in lower case."""
    calls = []

    def score(params, items, prefix=()):
        calls.append([TOKENIZER.decode([*prefix, *item.context]) for item in items])
        odds = [2.0 if "fine" in text.split("\n\n")[-1] else -1.0 for text in calls[-1]]
        return [OptionScores(np.array([0.0, odd]) - 3, np.zeros(2, bool)) for odd in odds]

    monkeypatch.setattr(ask_items, "_make_scorer", lambda *_: score)
    monkeypatch.setattr(ask_items.time, "perf_counter", itertools.count(0.0, 0.5).__next__)
    return calls


def values(field):
    return {name: figure.measured.value for name, figure in field.items()}


def run(task, **how):
    return report_task(task, LM, {}, TOKENIZER, draws=20, **how)


def test_the_worst_case_of_a_task_by_hand(make, asked):
    """As they are "Fine" alone is wrong; in capitals all of "fine" are, in lower case none."""
    found = run(make(CHOICE), shots=1)
    assert values(found.accuracy) == {"accuracy": 0.8} and found.items == 5
    assert values(found.robustness) == {
        "worst case": pytest.approx(2 / 5),
        "mean": pytest.approx((2 / 5 + 1 + 4 / 5) / 3),
        "shout": pytest.approx(2 / 5),
        "quiet": 1.0,
        "none": 0.8,
    }
    assert found.robustness["worst case"].measured[:3] == wilson_interval(2, 5)[:3]
    assert found.robustness["quiet"].note == "changes 3 of 5 items"
    questions = lambda texts: [f"A FINE one: good\n\n{text}:" for text in texts]
    originals, capitals = questions(TEXTS), questions([text.upper() for text in TEXTS])
    quiet = questions(["fine emily", "dull the", "fine"])
    assert asked == [originals, originals, capitals, quiet], "the first time for the programs"
    assert found.bias["gender"].measured.reason == "no text was generated"
    assert found.toxicity["share of toxic texts"].measured.reason == "no text was generated"


def test_a_perturbation_leaves_the_templates_words(make, asked):
    run(make(CHOICE.replace('"{text}:"', '"of {text} say {text}:"')))
    assert [f"of {text.upper()} say {text.upper()}:" for text in TEXTS] in asked


def test_probabilities_are_those_of_what_the_rule_compares(make, asked):
    """A model that is 88% or 73% sure; behind inputs that say nothing the options stand at 73%."""
    task, right = make(CHOICE), [1, 1, 1, 0, 1]
    high, low = (1 / (1 + np.exp(-odd)) for odd in (2.0, 1.0))
    error = lambda sure: pytest.approx(expected_calibration_error(sure, right))
    got = values(run(task).calibration)
    assert got["error, 10 bins of equal mass"] == error([high, high, low, low, low])
    got = values(run(task, rule="bytes").calibration)
    assert got["error, 10 bins of equal mass"] == error([high, high, low, low, low])
    got = values(run(task, rule="calibrated").calibration)
    even = 1 / (1 + np.exp(-3.0))
    assert got["error, 10 bins of equal mass"] == error([even, even, 0.5, 0.5, 0.5])


def test_an_option_that_an_item_lacks_has_no_probability(make):
    asker = Asker(make(CHOICE), LM, {}, TOKENIZER)
    result = ItemResult("", "", 0, 0, 0, True, [0.0], "")
    asked = AskedItems([], [result] * 2, [np.log([1.0, 3.0]), np.log([1.0, 3.0, 4.0])], 0.0, 0)
    probs = task_report.to_answers(asker, asked).probs
    np.testing.assert_allclose(probs, [[1 / 4, 3 / 4, 0], [1 / 8, 3 / 8, 4 / 8]])


def test_seconds_and_tokens_are_of_one_asking(make, asked):
    found = run(make(CHOICE), batch_size=3)
    read = sum(len(f"{text}:") + len(" bad") + len(" good") - 2 for text in TEXTS)
    assert values(found.efficiency)["seconds an item"] == pytest.approx(0.5 / 5)
    assert values(found.efficiency)["tokens a second"] == pytest.approx(read / 0.5)
    cores = f" with {describe_cores()}" if jax.default_backend() == "cpu" else ""
    where = f"{jax.devices()[0].device_kind}{cores}, 5 items, 3 at a time"
    assert found.efficiency["tokens a second"].note == where


def test_what_all_items_begin_with_is_read_once(make, asked):
    task = make(CHOICE, texts=[f"the same sixteen letters {i}" for i in range(5)])
    asker = Asker(task, LM, {}, TOKENIZER)
    whole, options = len("the same sixteen letters 0:"), len(" bad") + len(" good") - 2
    assert asker.ask(read_items(task)).tokens == 16 + 5 * (whole - 16 + options)
    again = Asker(task, LM, {}, TOKENIZER, rule="calibrated").ask(read_items(task)).tokens
    assert again == 16 + 5 * (whole - 16 + options) + len("N/A:" + "[MASK]:" + ":") + 3 * options


def test_answers_on_a_scale_have_neither_probabilities_nor_a_worst_case(make, asked):
    found = run(make(SCALE, labels=(0, 2.5, 4, 1, 5)))
    assert np.isfinite(values(found.accuracy)["spearman"])
    assert found.robustness["worst case"].measured.reason == "an item alone has no spearman correlation"
    assert "no probabilities" in found.calibration["error, 10 bins of equal mass"].measured.reason
    assert len(asked) == 2


def test_a_perturbed_text_that_cannot_be_asked_stays_as_it_is(make, asked, monkeypatch):
    """One is an example's then, one too long."""
    long = "fine " * 8
    task = make(CHOICE, texts=("a fine 1", "fine Emily", "dull THE", "Fine", long))
    change = {"a fine 1": "a fine one", long: long * 2}
    replace = lambda text, random: change.get(text, text)
    monkeypatch.setattr(task_report, "ROBUSTNESS", {"change": replace, **SHOUT})
    found = run(task, shots=1)
    assert found.robustness["change"].note == "changes 0 of 5 items"
    assert found.robustness["shout"].note == "changes 5 of 5 items"


def test_written_texts_are_counted_and_have_no_probabilities(make, monkeypatch):
    write = lambda params, rows, key: [TOKENIZER.decode(row)[:-1].lower() + " she" for row in rows]
    monkeypatch.setattr(ask_items, "make_text_writer", lambda *_, **__: write)
    monkeypatch.setattr(ask_items.time, "perf_counter", itertools.count(0.0, 0.5).__next__)
    ask_items._make_writer.cache_clear()
    texts = ("A", "b he", "idiot")
    found = run(make(WRITTEN, labels=("a she", "b", "c"), texts=texts), response_length=8)
    ask_items._make_writer.cache_clear()
    assert values(found.accuracy) == {"exact_match": pytest.approx(1 / 3)}
    assert values(found.robustness)["worst case"] == pytest.approx(1 / 3), "what is written is in lower case"
    assert found.bias["gender"].note == "female 3, male 1"
    assert values(found.toxicity)["share of toxic texts"] == pytest.approx(1 / 3)
    assert "no probabilities" in found.calibration["error, 10 bins of equal mass"].measured.reason
    tokens = sum(len(f"{text}:") + len(f"{text} she") for text in texts)
    assert values(found.efficiency)["tokens a second"] == pytest.approx(tokens / 0.5)
