"""In-context learning in miniature: what can be known of each world, by hand, and a whole run."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.data import byte_tokenizer
from jaxrl_align.nets import transformer
from tests.experiments.loading import load
from tests.tiny import draw_params

functions = load("in_context_functions")
words = load("in_context_words")
concepts = load("in_context_concepts")
load("in_context_report")
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
    found = json.loads((tmp_path / "run" / "results.json").read_text())["model"]["polite"]
    assert np.shape(found["shown"]["raw"]) == np.shape(found["shown"]["calibrated"]) == (2, 2)
    assert np.shape(found["tuned"]["0.001"]) == (2,)
    assert learnt == [drawn.examples for shots, drawn in shown if shots == 2]


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
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    quiet = found["functions"]["squared"]["without noise"]
    assert (
        np.max(np.array(quiet["least squares"])[:, 5:]) < 0.05
    )  # five pairs tell a function of five numbers
    noisy = found["functions"]["squared"]["with noise"]
    assert np.mean(noisy["ridge, Bayes"]) < np.mean(noisy["least squares"])
    known = found["words"]["right"]["known tasks"]
    assert np.array(known["Bayes, any task"])[:, 6:].mean() > 0.9
    assert np.shape(found["words"]["tuned"]) == (2, 2)
    nats = found["concepts"]["nats"]["known concepts"]
    late = {name: np.array(x)[:, 6:].mean() for name, x in nats.items()}
    assert late["told the concept"] <= late["exact posterior"] + 1e-3 < late["examples unread"]
    assert np.array(found["concepts"]["posterior"])[:, -1].min() > 0.9
    assert (tmp_path / "run" / "in_context.png").stat().st_size > 10_000
