"""The scorer of remarks: by hand, and on sentences that it has not seen."""

import math
import os
from pathlib import Path

import numpy as np
import pytest

from jaxrl_align.data.labelled_texts import load_sst2
from jaxrl_align.feedback import Comment, Rating, fit_sentiment, rate_comments
from jaxrl_align.feedback.sentiment import REMARKS, split_words, write_remarks


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A Good, good film.", "a good good film"),
        ("It isn't good at all, but fine.", "it is not not_good not_at not_all but fine"),
        ("does n't work; never again!  no fun", "does not not_work never not_again no not_fun"),
        ("No, not never.", "no not not_never"),
        ("Crème brûlée isn’t 10/10", "crème brûlée is not"),
        ("knot", "knot"),
        ("", ""),
    ],
)
def test_words_behind_a_negation_are_others(text, words):
    assert split_words(text) == words.split()


def test_the_score_by_hand():
    """Three good texts and two bad ones; a word counts once a text, and an unknown one 0."""
    score = fit_sentiment(["good good plot", "good", "fine", "bad plot", "bad bad good"], [1, 1, 1, 0, 0])
    good = math.log(3 / 5) - math.log(2 / 4)
    plot = math.log(2 / 5) - math.log(2 / 4)
    bad = math.log(1 / 5) - math.log(3 / 4)
    assert score("Good, good PLOT of zzz") == pytest.approx(good + plot)
    assert score("bad") == pytest.approx(bad)
    assert score("zzz") == score("") == 0.0
    half = fit_sentiment(["good", "bad"], [True, False], smoothing=0.5)
    assert half("good") == pytest.approx(math.log(1.5 / 2) - math.log(0.5 / 2))


def test_remarks_become_ratings_and_keep_who_said_them():
    row = Comment("p", "c", "nice", annotator="zoe", source="rows.jsonl:7", tools=["t"])
    told = ("zoe", "rows.jsonl:7", ["t"])
    assert rate_comments([row], lambda text: len(text)) == [Rating("p", "c", 4.0, *told)]


def test_moods_of_equal_width():
    mood = np.repeat([0.0, 0.19, 0.21, 0.5, 0.79, 0.81, 1.0], 60)
    said = write_remarks(mood, np.random.default_rng(0)).reshape(7, 60)
    for level, remarks in zip((0, 0, 1, 2, 3, 4, 4), said, strict=True):
        assert set(remarks) == set(REMARKS[level])


def read_uci(name):
    path = Path(os.environ.get("JAXRL_ALIGN_DATA", "")) / f"sentiment/uci_labelled/{name}_labelled.txt"
    lines = [line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    return zip(*((text, int(label)) for text, label in lines), strict=True)


SST2 = 0.82098
UCI = {"amazon_cells": 0.712, "imdb": 0.8, "yelp": 0.773}
"""Accuracies of a scorer fitted on SST-2's part to learn from."""


@pytest.mark.skipif(
    not (Path(os.environ.get("JAXRL_ALIGN_DATA", "")) / "sentiment/uci_labelled").is_dir(),
    reason="needs sentiment/ in $JAXRL_ALIGN_DATA",
)
def test_real_sentences():
    """Fitted on SST-2's part to learn from; UCI's sentences (Kotzias et al. 2015) are of other subjects."""
    sst2 = load_sst2()
    score = fit_sentiment(*sst2.train)
    accuracy = lambda texts, labels: np.mean(
        [(score(text) > 0) == label for text, label in zip(texts, labels, strict=True)]
    )
    np.testing.assert_allclose(accuracy(*sst2.test), SST2, atol=5e-5)
    for name, expected in UCI.items():
        np.testing.assert_allclose(accuracy(*read_uci(name)), expected, atol=5e-5)
    means = [np.mean([score(remark) for remark in level]) for level in REMARKS]
    assert means[0] < means[1] < means[3] < means[4] and means[1] < 0 < means[3], means


def test_a_label_between_the_classes_is_refused():
    with pytest.raises(ValueError, match="labels must be 0 or 1, one a text"):
        fit_sentiment(["a", "b", "c"], [0, 0.5, 1])
    assert fit_sentiment(["a", "b"], [0.0, 1.0])("b") > 0, "whole numbers of any type"
