"""The author experiment in miniature, on books made up of words of their own."""

import json

import numpy as np
import pytest

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
    accuracy = np.array(result["accuracy"])
    assert accuracy.shape == (1, 3, 2, 2, 2)
    assert accuracy[..., 1, :].min() > 85 and np.min(result["n_gram_accuracy"]) > 85
    assert (tmp_path / "run" / "author.png").stat().st_size > 5_000
    assert "vs unrelated text" in capsys.readouterr().out


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
