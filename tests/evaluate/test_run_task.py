"""A small model on small tasks: scores computed by hand, the same bytes twice, parameters untouched."""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.data import byte_tokenizer
from jaxrl_align.evaluate import (
    Choices,
    OptionScores,
    Prompt,
    ask_items,
    draw_examples,
    extract_answer,
    measure,
    read_items,
    run_task,
)
from jaxrl_align.evaluate.measures import item_metrics
from jaxrl_align.evaluate.tasks.task_format import load_task
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from tests.tiny import draw_params

module = importlib.import_module("jaxrl_align.evaluate.run_task")
TOKENIZER = byte_tokenizer()
LM = make_transformer(TransformerConfig(258, width=16, layers=1, heads=2, context=128))
PARAMS = draw_params(LM, 1.0)
HEAD = """
name = "my"
source = "ours"
licence = "CC0"
description = "Say how it is now:"
template = "{text}:"
"""
CHOICE = (
    'kind = "choice"\nmetrics = ["accuracy"]\n'
    + HEAD
    + """
[options]
choices = { "0" = "bad", "1" = "good" }
[thoughts]
field = "text"
[[test]]
format = "label text"
path = "test.txt"
[[examples]]
format = "label text"
path = "examples.txt"
"""
)
WORDS = (
    "ill",
    "well made",
    "dull and long, far too long",
    "a",
    "the best of all",
    "so so",
    "fine",
    "no",
    "yes",
)


@pytest.fixture
def write(tmp_path):
    def make(text=CHOICE, **rows):
        (tmp_path / "test.txt").write_text("".join(f"{i % 2} {word}\n" for i, word in enumerate(WORDS)))
        (tmp_path / "examples.txt").write_text("".join(f"{i % 2} film {i}\n" for i in range(6)) + "0 ILL\n")
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows.get("rows", ())))
        (tmp_path / "my.toml").write_text(text)
        return load_task(tmp_path / "my.toml")

    return make


def run(task, params=PARAMS, **how):
    return run_task(task, LM, params, TOKENIZER, **{"batch_size": 16, **how})


@jax.jit
def predict(tokens, real):
    return jax.nn.log_softmax(LM.logits(PARAMS, LM.encode(PARAMS, tokens, real)[0]))


def by_hand(context, text):
    """Return log p(text | context), read as one row and added up token by token."""
    before, whole = TOKENIZER.encode(context) or [TOKENIZER.stop_token], TOKENIZER.encode(context + text)
    whole = whole if context else before + whole
    padded = np.pad(np.array(whole, np.int32), (0, 128 - len(whole)))
    nats = np.asarray(predict(padded, (np.arange(128) < len(whole)).astype(np.float32)))
    return sum(nats[i - 1, whole[i]] for i in range(len(before), len(whole)))


def prompt_by_hand(task, text, examples=()):
    shown = [f"{e.input} {e.options[e.answer]}" for e in examples]
    return "\n\n".join(["Say how it is now:", *shown, f"{text}:"])


@pytest.mark.parametrize("shots", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_log_probs_are_those_of_the_whole_text_and_the_likelier_option_is_taken(write, shots):
    task = write()
    items = read_items(task)
    examples = draw_examples(read_items(task, "examples"), items, shots, seed=0).examples
    result = run(task, shots=shots)
    for item, got in zip(items, result.items, strict=True):
        context = prompt_by_hand(task, item.fields["text"], examples)
        wanted = [by_hand(context, " " + option) for option in item.options]
        np.testing.assert_allclose(got.log_probs, wanted, atol=2e-4)
        assert got.prediction == np.argmax(wanted) and got.right == (got.prediction == item.answer)
        assert context.endswith(got.prompt_end) and got.dropped == 0
    hits = [item.right for item in result.items]
    assert result.metrics["accuracy"][:3] == pytest.approx(tuple(measure("accuracy", hits, [True] * 9))[:3])
    assert result.shared_tokens >= 16 and result.excluded == (1 if shots else 0)


def test_calibration_takes_off_what_an_empty_input_gets(write):
    task = write()
    items, raw, got = read_items(task), run(task, shots=2), run(task, shots=2, rule="calibrated")
    examples = draw_examples(read_items(task, "examples"), items, 2, seed=0).examples
    shares = []
    for blank in ("N/A", "[MASK]", ""):
        context = prompt_by_hand(task, blank, examples)
        p = np.exp([by_hand(context, " bad"), by_hand(context, " good")])
        shares.append(p / p.sum())
    base = np.log(np.mean(shares, 0))
    assert [i.log_probs for i in got.items] == [i.log_probs for i in raw.items], "kept as they were scored"
    assert [i.prediction for i in got.items] == [
        int(np.argmax(np.array(i.log_probs) - base)) for i in raw.items
    ]
    assert [i.prediction for i in got.items] != [i.prediction for i in raw.items]


@pytest.mark.slow
def test_mutual_information_takes_off_what_the_option_gets_alone(write):
    task = write()
    raw, got = run(task), run(task, rule="mutual_information")
    base = np.array([by_hand("", " bad"), by_hand("", " good")])
    assert [i.prediction for i in got.items] == [
        int(np.argmax(np.array(i.log_probs) - base)) for i in raw.items
    ]


def test_the_same_run_gives_the_same_bytes(write):
    task = write()
    first, again = (run(task, shots=2) for _ in range(2))
    assert first.to_json() == again.to_json()
    values = json.loads(first.to_json())
    assert values["items"][0]["place"] == "test.txt:1" and values["seed"] == 0
    assert run(task, shots=2, seed=1).to_json() != first.to_json()


@pytest.mark.slow
def test_the_batch_changes_nothing(write):
    task = write()
    first, other = (run(task, shots=1, batch_size=size) for size in (4, 3))
    for one, two in zip(first.items, other.items, strict=True):
        np.testing.assert_allclose(one.log_probs, two.log_probs, atol=1e-5)
        assert one._replace(log_probs=[]) == two._replace(log_probs=[])


def test_parameters_are_the_same_after_as_before(write, monkeypatch):
    result = run(write(), shots=2)
    assert len(result.parameters) == 64 and run(write(), shots=2).parameters == result.parameters
    hashes = iter("ab")
    monkeypatch.setattr(module, "fingerprint", lambda params: {"sha256": next(hashes)})
    with pytest.raises(RuntimeError, match="evaluation must not change parameters"):
        run(write(), shots=2)


@pytest.mark.slow
def test_examples_that_do_not_fit_are_dropped_for_single_items(write):
    result = run(write(), shots=6)
    dropped = [item.dropped for item in result.items]
    assert result.shortened == sum(d > 0 for d in dropped) and len(set(dropped)) > 1
    task = write()
    examples = draw_examples(read_items(task, "examples"), read_items(task), 6, seed=0).examples
    for item, got in zip(read_items(task), result.items, strict=True):
        context = prompt_by_hand(task, item.fields["text"], examples[got.dropped :])
        wanted = [by_hand(context, " " + option) for option in item.options]
        np.testing.assert_allclose(got.log_probs, wanted, atol=2e-4)


@pytest.mark.slow
def test_a_limit_takes_the_same_items_from_everywhere(write):
    task = write()
    few, more = ([i.place for i in run(task, limit=n, seed=n).items] for n in (3, 5))
    assert len(few) == 3 and set(few) < set(more) and few == sorted(few)
    assert few != ["test.txt:1", "test.txt:2", "test.txt:3"]
    assert len(run(task, limit=50).items) == 9
    with pytest.raises(ValueError, match="limit must be a whole number of at least 1"):
        run(task, limit=0)


GENERATE = (
    'kind = "generate"\nmetrics = ["exact_match"]\n'
    + HEAD
    + """
stop = ["{stop}"]
[answer]
field = "answer"
extractor = "all"
[[test]]
format = "jsonl"
path = "rows.jsonl"
"""
)


def greedy(context, count):
    """Return what the likeliest tokens write, one by one."""
    ids = TOKENIZER.encode(context)
    for _ in range(count):
        padded = np.pad(np.array(ids, np.int32), (0, 128 - len(ids)))
        nats = predict(padded, (np.arange(128) < len(ids)).astype(np.float32))
        ids.append(int(jnp.argmax(nats[len(ids) - 1])))
        if ids[-1] == TOKENIZER.stop_token:
            break
    return TOKENIZER.decode(ids[len(TOKENIZER.encode(context)) :])


def test_answers_are_written_greedily_and_read_by_the_extractor(write):
    written = [greedy(prompt_by_hand(None, word), 12) for word in WORDS]
    stop = written[0][5]
    golds = [text[: text.find(stop)] if stop in text else text for text in written]
    assert len(golds[0]) < len(written[0])
    rows = [
        {"text": w, "answer": g.strip() if i % 2 == 0 else "other"}
        for i, (w, g) in enumerate(zip(WORDS, golds, strict=True))
    ]
    text = GENERATE.replace('"{stop}"', json.dumps(stop))
    result = run(write(text, rows=[row for row in rows if row["answer"]]), response_length=12)
    kept = [g for g, row in zip(golds, rows, strict=True) if row["answer"]]
    assert [item.written for item in result.items] == kept
    assert [item.prediction for item in result.items] == [extract_answer("all", g) for g in kept]
    assert result.rule == "" and result.metrics["exact_match"].value == np.mean(
        [i.right for i in result.items]
    )
    assert result.unread == sum(not g.strip() for g in kept)
    assert [i.right for i in result.items] == [i.answer == i.prediction for i in result.items]
    assert any(i.right for i in result.items) and not all(i.right for i in result.items)


def test_a_solution_is_written_and_the_option_read_from_it(write, monkeypatch):
    texts = ["It is long. So the answer is GOOD.", "So the answer is bad", "no idea"]
    prompts = []

    def writer(*_, **how):
        assert how["stop_strings"] == ("\n\n",) and how["stop_tokens"] == (TOKENIZER.stop_token, 65, 66)
        return lambda params, rows, key: [prompts.append(r) or texts[(len(prompts) - 1) % 3] for r in rows]

    ask_items._make_writer.cache_clear()
    monkeypatch.setattr(ask_items, "make_text_writer", writer)
    several = TOKENIZER.with_stops((65, 66))  # as a model's folder may name them
    result = run_task(write(), LM, PARAMS, several, thoughts=True, response_length=16, batch_size=9)
    ask_items._make_writer.cache_clear()
    assert {(i.written, i.prediction) for i in result.items} == {
        (texts[0], 1),
        (texts[1], 0),
        (texts[2], None),
    }
    assert result.unread == 3 and all(i.right == (i.prediction == i.answer) for i in result.items)
    assert result.metrics["accuracy"].value == pytest.approx(np.mean([i.right for i in result.items]))


def test_a_number_on_a_scale_is_read_from_a_solution(write):
    scale = 'kind = "choice"\nmetrics = ["pearson"]\n' + HEAD + "[options]\nnumbers = [1, 2, 3]\n"
    scale += '[thoughts]\nfield = "text"\n[[test]]\nformat = "jsonl"\npath = "rows.jsonl"\n'
    task = write(scale, rows=[{"text": "a", "label": 1.5}])
    (item,), prompt = read_items(task), Prompt("", (), Choices((), ()), 0)
    for text, number in {"3": 3.0, "1.2.": 1.2, "a lot": None, "nan": None, "": None}.items():
        got = ask_items._read_answer(task, item, prompt, f"So the answer is {text}", thoughts=True)
        assert got.prediction == number and got.right is None


@pytest.fixture
def scores(monkeypatch):
    """Scores by the sum of an option's bytes and the context's length, and what was read for them."""
    seen = []

    def score(params, items, prefix=()):
        seen.extend(([*prefix, *item.context], item.options) for item in items)
        nats = [[-sum(o) / 1000 * len([*prefix, *item.context]) for o in item.options] for item in items]
        return [OptionScores(np.array(own), np.zeros(len(own), bool)) for own in nats]

    monkeypatch.setattr(ask_items, "_make_scorer", lambda *_: score)
    return seen


def test_pairs_are_whole_texts(write, scores):
    pair = 'kind = "pair"\nmetrics = ["accuracy"]\n' + HEAD.replace('template = "{text}:"', "").replace(
        'description = "Say how it is now:"', 'group = "{kind}"'
    )
    pair += '[options]\nfields = ["good", "bad"]\n[[test]]\nformat = "jsonl"\npath = "rows.jsonl"\n'
    rows = [{"good": w, "bad": w[::-1] + "!", "kind": i % 2} for i, w in enumerate(WORDS)]
    result = run(write(pair, rows=rows))
    for row, got, (context, options) in zip(rows, result.items, scores, strict=True):
        texts = [TOKENIZER.decode(option) for option in options]
        assert context == [TOKENIZER.stop_token] and set(texts) == {row["good"], row["bad"]}
        better = texts.index(row["good"]) == np.argmax(got.log_probs)
        assert got.right == better and got.log_probs == [-sum(option) / 1000 for option in options]
    assert result.metrics["accuracy"].kind == "range", "two groups"


@pytest.mark.parametrize("rule", ["mutual_information", "calibrated"])
def test_a_rule_that_would_make_all_options_alike_is_refused(write, rule):
    pair = 'kind = "pair"\nmetrics = ["accuracy"]\n' + HEAD.replace('template = "{text}:"', "")
    pair += '[options]\nfields = ["good", "bad"]\n[[test]]\nformat = "jsonl"\npath = "rows.jsonl"\n'
    with pytest.raises(ValueError, match=f"rule '{rule}' subtracts .* task my has none"):
        run(write(pair, rows=[{"good": "a", "bad": "b"}]), rule=rule)


def test_an_unknown_rule_is_refused_before_anything_is_asked(write, scores):
    with pytest.raises(ValueError, match="rule must be one of raw, .*; got 'best'"):
        run(write(), rule="best")
    assert not scores


def test_numbers_are_a_mean_by_probability(write, scores):
    scale = 'kind = "choice"\nmetrics = ["pearson"]\n' + HEAD
    scale += '[options]\nnumbers = [0, 5]\n[[test]]\nformat = "jsonl"\npath = "rows.jsonl"\n'
    got = run(write(scale, rows=[{"text": w, "label": i / 2} for i, w in enumerate(WORDS)]))
    for item in got.items:
        p = np.exp(np.array(item.log_probs))
        assert item.prediction == pytest.approx(5 * p[1] / p.sum(), abs=1e-5) and item.right is None
    wanted = np.corrcoef([i.prediction for i in got.items], [i.answer for i in got.items])[0, 1]
    assert got.metrics["pearson"].value == pytest.approx(wanted)


@pytest.mark.slow
def test_groups_stay_whole_where_a_metric_judges_them_whole(write):
    text = CHOICE.replace('["accuracy"]', '["group_exact_match"]').replace("label text", "jsonl")
    text = text.replace("test.txt", "rows.jsonl").replace("[options]", 'group = "{g}"\n[options]')
    rows = [{"text": str(i), "label": 0, "g": i // 3} for i in range(12)]
    result = run(write(text, rows=rows), limit=4)
    places = [int(i.place.split(":")[1]) - 1 for i in result.items]
    assert len(places) == 6 and sorted(p // 3 for p in places) == sorted(
        3 * [g for g in {p // 3 for p in places}]
    )
    all_right = {p // 3: True for p in places}
    for p, item in zip(places, result.items, strict=True):
        all_right[p // 3] &= item.right
    assert result.metrics["group_exact_match"].value == np.mean(list(all_right.values()))


@pytest.fixture
def few_draws(monkeypatch):
    """Intervals that nothing is said of here."""
    monkeypatch.setattr(item_metrics, "bootstrap", functools.partial(item_metrics.bootstrap, draws=20))


def test_a_metric_says_why_it_is_not_defined_and_is_null_in_json():
    found = measure("pearson", [1.0, 1.0], [1.0, 2.0])
    assert np.isnan(found.value) and "constant" in found.reason and str(found) == f"undefined: {found.reason}"
    assert found.to_dict()["value"] is None and found.to_dict()["low"] is None


def test_metrics_of_texts_read_what_the_options_say():
    options = [("the cat", "a dog")] * 3
    assert measure("token_f1", [0, 1, None], [(0,), (0, 1), (1,)], options=options).value == pytest.approx(
        2 / 3
    )
    assert measure("normalised_exact_match", [0, 0], [(1,), (0, 1)], options=options[:2]).value == 0.5
    assert measure("exact_match", ["a", None], ["a", "b"]).value == 0.5
    assert measure("exact_match", ["a", None], ["a", "b"]).kind == "wilson"


def test_labels_that_are_missing_or_many(few_draws):
    assert measure("f1", [1, None, 0], [1, 1, 0]).value == pytest.approx(2 / 3)
    assert measure("macro_f1", [None, 1], [0, 1]).value == pytest.approx(1 / 3), "a class of its own"
    assert measure("macro_f1", [0, 1], [(0, 1), (0, 1)]).value == 1.0
    assert measure("matthews", [0, 1], [(1,), (0,)]).value == -1.0


@pytest.mark.parametrize("labels", [(-1, 1), ("-1", "1"), (0, 1), ("a", "b")])
def test_what_was_not_answered_is_wrong_whatever_the_labels_are(few_draws, labels):
    assert measure("macro_f1", [None, labels[1]], labels).value == pytest.approx(1 / 3)
    assert measure("macro_f1", [None, None], labels).value == 0.0, "none is answered"


def test_what_was_not_answered_has_no_place_on_a_scale():
    found = measure("spearman", [None, 1.0, 2.0], [5.0, 1.0, 2.0])
    assert np.isnan(found.value) and found.reason.startswith("1 of 3 items have no prediction")


def test_groups_and_names():
    assert measure("accuracy", [1, 1, 0, 0], [1, 1, 1, 1], groups=["a", "a", "b", "b"]).kind == "range"
    assert measure("token_f1", ["a b", "c", "d"], ["a b", "c", "x"], groups=["a", "a", "b"]).kind == "range"
    assert measure("group_exact_match", [1, 1, 0], [1, 1, 1], groups=["a", "a", "b"]).value == 0.5
    with pytest.raises(ValueError, match="needs the items' groups"):
        measure("group_exact_match", [1], [1])
    with pytest.raises(ValueError, match="a metric must be one of"):
        measure("acuracy", [1], [1])


def test_answers_come_back_in_the_items_order_whatever_examples_they_kept():
    contexts = [Choices((i,) * (9 - i), ()) for i in range(6)]
    prompts = [Prompt("", (), tokens, dropped=1 - i % 2) for i, tokens in enumerate(contexts)]
    write = lambda params, rows, key: [str(row[0]) for row in rows]
    assert ask_items._write_answers(None, write, {}, prompts, 2, None) == list("012345")


def test_one_of_several_right_answers_is_right():
    assert (
        ask_items._is_right(1, (0, 1))
        and not ask_items._is_right(2, (0, 1))
        and ask_items._is_right("a", "a")
    )
