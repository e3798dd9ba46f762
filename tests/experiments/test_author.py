"""The author experiment in miniature, on books made up of words of their own."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.runtime import Interval
from tests.experiments.loading import load


def write_books(folder):
    """Two authors with two books each of words of their own, and a third with one book."""
    rng = np.random.default_rng(0)
    words = {
        "ann": ["the", "cat", "sat", "there"],
        "bob": ["a", "dog", "ran", "away"],
        "eve": ["one", "book"],
    }
    for author, own in words.items():
        (folder / author).mkdir()
        for title in ("first", "second")[: 1 if author == "eve" else 2]:
            (folder / author / f"{title}.txt").write_text("title " * 500 + " ".join(rng.choice(own, 240)))


@pytest.mark.slow
def test_author_in_miniature(tmp_path, capsys):
    """On made-up books: every start and the n-grams tell the authors apart; the run's folder is complete."""
    pytest.importorskip("sklearn")
    experiment = load("author")
    write_books(tmp_path)
    config = experiment.Config(
        books=str(tmp_path),
        words=6,
        labels=(8,),
        test_passages=10,
        vocabulary=300,
        layers=1,
        heads=2,
        width=16,
        context=16,
        pretrain_steps=4,
        pretrain_batch=4,
        finetune_epochs=1,
        finetune_steps=30,
        finetune_batch=8,
        finetune_rate=1e-3,
        seeds=2,
        out=str(tmp_path / "run"),
    )
    experiment.main(config)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    tuned, gains, _, frozen_gains, labelled = result["tables"].values()
    assert list(tuned) == [*experiment.STARTS, "n-grams"] and list(labelled) == list(experiment.STARTS)
    for rows in (tuned, labelled):
        assert all(row["8 passages"]["value"] > 85 for row in rows.values())
    kept = json.loads((tmp_path / "run" / "labels_8.json").read_text())
    accuracy = np.array(kept["accuracy"])
    assert accuracy.shape == (3, 2, 2, 2)
    assert tuned["related text"]["8 passages"]["value"] == pytest.approx(accuracy[2, :, 1, 1].mean())
    assert labelled["from scratch"]["8 passages"]["value"] == pytest.approx(accuracy[0, :, 1, 0].mean())
    pair = "unrelated text less from scratch"
    for rows, i in ((gains, 1), (frozen_gains, 0)):
        found = (accuracy[1, :, i, 1] - accuracy[0, :, i, 1]).mean()
        assert rows[pair]["8 passages"]["value"] == pytest.approx(found)
    assert result["baselines"]["n-grams with 8 passages an author [%]"]["value"] > 85
    assert (tmp_path / "run" / "author.png").stat().st_size > 5_000
    assert "8 labelled passages an author" in capsys.readouterr().out


def test_every_seed_has_a_model_of_its_own_of_each_text():
    experiment = load("author")
    scratch = {"w": jnp.array([[0.0], [1.0]])}
    trained = {"w": jnp.array([[10.0], [11.0], [20.0], [21.0]])}  # text 1 and 2, the seed varying fastest
    starts = experiment.make_starts(scratch, trained)["w"][..., 0]
    assert starts.tolist() == [[0, 10, 20], [1, 11, 21]]


@pytest.mark.slow
def test_models_of_a_text_differ_by_seed(tmp_path):
    experiment = load("author")
    shape = {"layers": 1, "heads": 2, "width": 8, "context": 8, "vocabulary": 20, "pretrain_batch": 2}
    config = experiment.Config(seeds=2, pretrain_steps=1, out=str(tmp_path / "run"), **shape)
    lm = experiment.make_transformer(experiment.TransformerConfig(20, 8, 1, 2, 8))
    corpora = [np.arange(60) % 20, np.arange(30) % 7]
    trained = experiment.pretrain(config, lm, corpora, config.open_folder())
    tokens = np.asarray(trained["tokens"])
    assert len(tokens) == 4 and len({x.tobytes() for x in tokens}) == 4
    # One step moves a weight by no more than the rate: a seed's two models began alike.
    assert np.abs(tokens[:2] - tokens[2:]).max() < 0.01 < np.abs(tokens[0] - tokens[1]).max()


def test_the_verdict_takes_every_number_of_passages():
    experiment = load("author")
    near = lambda value: Interval(value, value - 1, value + 1, "t")
    pairs = [f"{a} text less {b}" for a, b in (("related", "unrelated text"), ("related", "from scratch"))]
    pairs.append("unrelated text less from scratch")
    rows = lambda *values: [dict(zip(pairs, map(near, row), strict=True)) for row in values]
    good = rows((5, 9, 4), (3, 9, 6))
    judged = lambda *x: list(experiment.judge(*x).values())
    assert judged(good, good) == [True] * 4
    assert judged(rows((5, 9, 4), (3, 9, 0.5)), good) == [True, True, False, True]
    assert judged(rows((-5, 9, 4)), rows((5, 9, -4))) == [False, True, True, False]
    assert judged(rows((5, 0, 4)), good) == [True, False, True, True]


def test_no_held_out_word_is_in_what_is_trained_on(tmp_path):
    experiment = load("author")
    for author in ("ann", "bob", "eve"):
        (tmp_path / author).mkdir()
        for title in ("first", "second")[: 1 if author == "eve" else 2]:
            body = " ".join(f"{author}{title}{i}" for i in range(40))
            (tmp_path / author / f"{title}.txt").write_text("title " * 500 + body)
    config = experiment.Config(books=str(tmp_path), words=4, labels=(2,), test_passages=5)
    task = experiment.make_task(config)
    tested = " ".join(text for texts in task.test for text in texts)
    assert [len(texts) for texts in task.test] == [5, 5] and [len(texts) for texts in task.train] == [10, 10]
    assert "annfirst0" in tested and "bobfirst39" in tested
    learned = " ".join([task.unrelated, task.related, *(text for texts in task.train for text in texts)])
    assert not set(tested.split()) & set(learned.split())
    assert {"annsecond0", "bobsecond39", "evefirst7"} <= set(task.related.split())
    few, _ = experiment.choose(task.train, 2, seed=3)
    more, label = experiment.choose(task.train, 4, seed=3)
    assert few == more[:2] + more[4:6] and label.tolist() == [0] * 4 + [1] * 4
    with pytest.raises(ValueError, match="every author needs 11 passages to learn from; ann has 10"):
        experiment.make_task(experiment.Config(books=str(tmp_path), words=4, labels=(11,)))
