"""In-context learning in miniature: what can be known of each world, by hand, and a whole run."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.data import byte_tokenizer
from jaxrl_align.nets import transformer
from jaxrl_align.runtime import Interval
from tests.experiments.loading import load
from tests.tiny import draw_params

functions = load("in_context_functions")
words = load("in_context_words")
concepts = load("in_context_concepts")
reports = load("in_context_report")
published = load("in_context_model")
experiment = load("in_context")


def test_ridge_is_the_closed_form_of_the_pairs_before():
    pairs = functions.draw_pairs(jax.random.key(0), 0.0, prompts=2, points=6, dimension=3)
    found = functions.ridge(pairs, 0.3)[1]
    x, y = (np.asarray(value)[1] for value in pairs)
    assert found[0] == 0.0
    for k in range(1, 6):
        w = np.linalg.inv(x[:k].T @ x[:k] + 0.3 * np.eye(3)) @ x[:k].T @ y[:k]
        assert found[k] == pytest.approx(x[k] @ w, rel=1e-4)
    exact = functions.ridge(pairs, 1e-9)[1]  # without noise three pairs tell all
    np.testing.assert_allclose(exact[3:], y[3:], atol=1e-3)
    noisy = functions.draw_pairs(jax.random.key(0), 2.0, prompts=500, points=6, dimension=3)
    quiet = functions.draw_pairs(jax.random.key(0), 0.0, prompts=500, points=6, dimension=3)
    assert float(jnp.std(noisy.y - quiet.y)) == pytest.approx(2.0, rel=0.05)


def test_a_prediction_reads_the_pairs_before_and_its_own_x_alone():
    lm = functions.make_reader(4, 8, 1)
    learner = functions.make_function_learner(lm, 0.0, prompts=2, points=4, dimension=2, steps=10)
    params = learner.init(jax.random.key(0), experiment.LMHParams(1e-3)).params
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)
    pairs = jax.tree.map(
        lambda x: x[0], functions.draw_pairs(jax.random.key(2), 0.0, prompts=1, points=4, dimension=2)
    )
    said = lambda pairs: np.asarray(functions.predict(lm, params, pairs))
    base = said(pairs)
    y = said(pairs._replace(y=pairs.y.at[2].add(1.0)))
    np.testing.assert_array_equal(y[:3], base[:3])
    assert y[3] != base[3]
    x = said(pairs._replace(x=pairs.x.at[2].add(1.0)))
    np.testing.assert_array_equal(x[:2], base[:2])
    assert x[2] != base[2] and x[3] != base[3]


def test_every_assignment_is_a_task_and_some_are_held_out():
    tasks = zip(words.TASKS.field, words.TASKS.labels, strict=True)
    rows = [(int(field), tuple(map(int, labels))) for field, labels in tasks]
    assert sorted(rows) == list(itertools.product((0, 1), itertools.permutations(range(4))))
    assert len(words.HELD_OUT) == 12 and not set(words.HELD_OUT) & set(words.KNOWN)
    held_out = [set(rows[i][1] for i in words.HELD_OUT if rows[i][0] == field) for field in (0, 1)]
    assert [len(labels) for labels in held_out] == [6, 6] and not held_out[0] & held_out[1]


def test_the_posterior_over_word_tasks_is_that_of_a_count():
    asked = words.draw_prompts(jax.random.key(3), words.HELD_OUT, prompts=3, examples=5)
    tasks = list(itertools.product((0, 1), itertools.permutations(range(4))))
    label_of = lambda task, row: task[1][row[task[0]]]
    for row, labels in zip(*map(np.asarray, asked), strict=True):
        found = np.asarray(words.bayes(words.Prompts(jnp.array(row), jnp.array(labels))))
        left = tasks
        for k in range(5):
            votes = np.bincount([label_of(task, row[k]) for task in left], minlength=words.LABELS)
            np.testing.assert_allclose(found[k], votes / votes.sum(), atol=1e-6)
            left = [task for task in left if label_of(task, row[k]) == labels[k]]
        assert left  # the prompt's own task fits


def test_a_prompt_of_words_as_tokens_by_hand():
    row = words.as_tokens(words.Prompts(jnp.array([[[0, 3], [2, 1]]]), jnp.array([[3, 2]])))
    assert row.tokens[0].tolist() == [0, 2, 9, 1, 13, 4, 7, 1, 12]
    assert row.predict[0].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 1]
    task = int(np.flatnonzero((words.TASKS.field == 1) & (words.TASKS.labels == [3, 0, 2, 1]).all(1))[0])
    shown = words.draw_examples(jax.random.key(0), task, 50)
    np.testing.assert_array_equal(shown.labels, np.array([3, 0, 2, 1])[np.asarray(shown.words)[:, 1]])


def test_the_exact_posterior_is_a_sum_over_all_paths():
    world = concepts.draw_concepts(jax.random.key(0), concepts=3, states=2, symbols=4)
    rows, which = concepts.draw_documents(jax.random.key(1), world, documents=4, examples=2, length=3)
    assert rows.tokens.shape == (4, 9) and (rows.tokens[:, ::4] == concepts.DELIMITER).all()
    start, move, emit = (np.exp(np.asarray(x, np.float64)) for x in world)

    def chance(concept, said):
        """Return the probability of one example's first symbols."""
        paths = itertools.product(range(2), repeat=len(said))
        step = lambda i, path: start[concept, path[0]] if i == 0 else move[concept, path[i - 1], path[i]]
        return sum(np.prod([step(i, p) * emit[p[i], s] for i, s in enumerate(said)]) for p in paths)

    def before(tokens, i):
        """Return each concept's chance of the first example and i symbols of the second."""
        return np.array([chance(c, tokens[1:4]) * chance(c, tokens[5 : 5 + i]) for c in range(3)])

    flat = jnp.full(3, -jnp.log(3.0))
    for tokens in np.asarray(rows.tokens):
        exact = concepts.read_exactly(world, jnp.array(tokens), flat)
        for i in range(3):
            odds, further = (before(tokens, n) for n in (i, i + 1))
            np.testing.assert_allclose(exact.posterior[4 + i], odds / odds.sum(), rtol=2e-3, atol=1e-5)
            assert float(exact.nats[4 + i]) == pytest.approx(
                -np.log(further.sum() / odds.sum()), rel=1e-3, abs=1e-4
            )


TASK = """
name = "polite"
kind = "choice"
source = "ours"
licence = "CC0"
metrics = ["accuracy"]
description = "Say whether it is polite."
template = "{text}\\nPolite:"
[options]
choices = { "0" = "no", "1" = "yes" }
[[test]]
format = "jsonl"
path = "test.jsonl"
[[examples]]
format = "jsonl"
path = "examples.jsonl"
"""


@pytest.fixture
def polite(tmp_path):
    """A task of which one test row stands among the examples, so that what is asked changes what is drawn."""
    rows = lambda words, label: [{"text": word, "label": label} for word in words]
    both = {"test": ("please", "fool", "thanks"), "examples": ("kindly", "ass", "fool", "dear", "sot", "sir")}
    for name, words in both.items():
        lines = [json.dumps(row) for i, word in enumerate(words) for row in rows([word], i % 2)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "polite.toml").write_text(TASK)
    return tmp_path / "polite.toml"


@pytest.fixture
def model():
    lm = transformer.make_transformer(transformer.TransformerConfig(258, 8, 1, 2, 160))
    return published.Published(lm, draw_params(lm), byte_tokenizer())


def test_a_lora_learns_the_answers_behind_bare_prompts(model, polite):
    task = published.load_task(str(polite))
    _, drawn = published.draw_items(task, shots=2, limit=1, seed=0, balanced=True)
    batch = published.as_batch(model, task, drawn.examples, 80)
    for row, real, said, example in zip(*map(np.asarray, batch[:3]), drawn.examples, strict=True):
        text = model.tokenizer.decode(row[real > 0].tolist())
        answer = " " + example.options[example.answer]
        assert text == f"Say whether it is polite.\n\n{example.input}{answer}"
        assert model.tokenizer.decode(row[said > 0].tolist()) == answer


def test_the_commonest_answer_is_right_as_often_as_it_is_the_answer():
    answers = (0, 1, (0, 1), 0, 1, 1)
    items = [published.Item({}, "", ("no", "yes"), answer, "file:1", None) for answer in answers]
    assert published.say_the_commonest(items) == 4 / 6


@pytest.mark.slow
def test_a_published_model_is_shown_what_its_lora_learns(model, polite, tmp_path, monkeypatch):
    shown, learnt = [], []
    real_run, real_batch = published.run_task, published.as_batch
    items = lambda how: published.draw_items(
        published.load_task(str(polite)),
        shots=how["shots"],
        limit=how["limit"],
        seed=how["seed"],
        balanced=True,
    )[1]
    monkeypatch.setattr(published, "load_published", lambda folder: model)
    monkeypatch.setattr(
        published,
        "run_task",
        lambda *a, **how: shown.append((how["shots"], items(how))) or real_run(*a, **how),
    )
    monkeypatch.setattr(published, "as_batch", lambda *a: learnt.append(a[2]) or real_batch(*a))
    small = {"model_tasks": (str(polite),), "model_shots": (0, 2), "model_draws": 2, "model_items": 2}
    small |= {"model_rates": (1e-3,), "model_steps": 2, "model_length": 80}
    config = experiment.Config(out=str(tmp_path / "run"), parts=("model",), **small)
    experiment.main(config)
    kept = json.loads((tmp_path / "run" / "model_polite").read_text())
    raw, calibrated = (100 * np.array(kept["shown"][rule]) for rule in ("raw", "calibrated"))
    assert raw.shape == calibrated.shape == (2, 2) and np.shape(kept["tuned"]["0.001"]) == (2,)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    (table,) = result["tables"].values()
    value = lambda row, column: table[row][column]["value"]
    assert value("raw", "2") == raw[:, 1].mean() and value("calibrated", "0") == calibrated[:, 0].mean()
    assert value("calibrated less raw, paired", "2") == (calibrated - raw)[:, 1].mean()
    assert value("a LoRA on the same 2 instead, rate 0.001", "0") == 100 * np.mean(kept["tuned"]["0.001"])
    (headline,), baselines = result["headline"].values(), [x["value"] for x in result["baselines"].values()]
    commonest = table["the commonest answer alone"]["2"]
    assert headline["value"] == np.mean([with_two - max(none, commonest) for none, with_two in calibrated])
    without = [(x[:, 1] - x[:, 0]).mean() for x in (calibrated, raw)]
    assert baselines == [*without, calibrated[:, 1].mean() - commonest]
    assert result["rows"] == ["E1", "E3"]
    assert learnt == [drawn.examples for shots, drawn in shown if shots == 2]


def test_a_gain_is_over_the_better_of_none_and_the_commonest_answer():
    config = experiment.Config(model_shots=(0, 2), model_items=4)
    rows = {"shown": {"raw": [[0.1, 0.2], [0.1, 0.2]], "calibrated": [[0.3, 0.7], [0.8, 0.9]]}}
    (gain,) = reports.describe_model(config, "t", rows | {"tuned": {}, "commonest": 0.5})["headline"].values()
    assert gain.value == pytest.approx(100 * ((0.7 - 0.5) + (0.9 - 0.8)) / 2)


def test_shots_begin_with_none():
    with pytest.raises(ValueError, match="model_shots must begin with 0 and go on"):
        experiment.Config(model_shots=(1, 2))


@pytest.mark.slow
def test_a_run_in_miniature(tmp_path):
    small = {"function_steps": 60, "word_steps": 40, "concept_steps": 60, "tests": 64, "tuned_tasks": 4}
    small |= {"tuned_steps": 3, "tuned_examples": (2, 4), "tuned_rates": (1e-3,), "layers": 1, "width": 16}
    parts = ("functions", "words", "concepts")
    config = experiment.Config(out=str(tmp_path / "run"), parts=parts, seeds=2, **small)
    experiment.main(config)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["rows"] == ["E1", "E2", "E3"] and len(result["checks"]) == 9 == 3 * len(result["headline"])
    titles, tables = list(result["tables"]), list(result["tables"].values())
    value = lambda i, row, column: tables[i][row][column]["value"]
    assert "without noise" in titles[0] and "with noise" in titles[1]
    assert value(0, "least squares", "6") < 0.05  # six pairs tell a function of three numbers
    assert value(1, "ridge, Bayes", "4") < value(1, "least squares", "4")
    less = value(1, "transformer", "2") - value(1, "ridge, Bayes", "2")
    assert value(1, "transformer less ridge, paired", "2") == pytest.approx(less)
    assert "held-out tasks" in titles[2] and "known tasks" in titles[3]
    assert value(3, "Bayes, any task", "8") > 90
    assert list(tables[4]) == ["2 examples", "4 examples"]
    words_gain = value(2, "transformer", "4") - value(4, "4 examples", "right")
    late = {name: value(5, name, "11") for name in tables[5]}
    assert late["told the concept"] <= late["exact posterior"] + 1e-3 < late["examples unread"]
    above = late["transformer"] - late["exact posterior"]
    assert value(7, "difference", "11") == pytest.approx(above)
    assert value(8, "exact", "11") > 0.9
    headline = [x["value"] for x in result["headline"].values()]
    gain = value(5, "transformer", "0") - late["transformer"]
    assert headline == pytest.approx([value(0, "transformer", "8"), words_gain, gain])
    baselines = [x["value"] for x in result["baselines"].values()]
    new = value(6, "transformer", "0") - value(6, "transformer", "11")
    assert baselines == pytest.approx([value(0, "transformer", "0"), value(4, "4 examples", "right"), new])
    assert (tmp_path / "run" / "in_context.png").stat().st_size > 10_000


def near(value, half=0.01):
    return Interval(value, value - half, value + half, "t")


def test_the_verdicts_on_functions_and_concepts():
    functions = lambda *x: list(reports.judge_functions(*x).values())
    assert functions([near(0.2)], [near(0.02)] * 2, [near(0.03)] * 2) == [True] * 3
    assert functions([near(0.2), near(0)], [near(0.045)], [near(-0.1), near(0.045)]) == [False] * 3
    concepts = lambda *x: list(reports.judge_concepts(*x).values())
    assert concepts(near(0.3), [near(0.05), near(-0.2)], near(0.01)) == [True] * 3
    assert concepts(near(0), [near(0.05), near(0.095)], near(0.045)) == [False] * 3


def test_the_verdicts_on_words_and_a_published_model():
    verdict = lambda *x: list(reports.judge_words(*x).values())
    assert verdict(near(50, 5), near(17, 9), near(99, 1)) == [True] * 3
    assert verdict(near(4, 5), near(4, 9), near(95.5, 1)) == [False] * 3
    up, down = near(30, 10), near(8, 10)
    model = lambda *x: list(reports.judge_model("t", *x).values())
    raw, calibrated = {"raw": up, "calibrated": down}, {"raw": down, "calibrated": up}
    assert model({"raw": up, "calibrated": up}, up, {"1": up}, up) == [True] * 5
    assert model(calibrated, down, {"1": up, "2": down}, up) == [False, True, False, False, True]
    assert model(calibrated, up, {"1": up}, down) == [False, True, True, True, False]
    assert model(raw, up, {"1": near(-30, 10)}, up) == [True, False, True, False, True]


def test_fine_tuning_needs_a_number_that_the_context_holds():
    with pytest.raises(ValueError, match="tuned_examples must begin below examples=4; got"):
        experiment.Config(examples=4, tuned_examples=(4, 8))
