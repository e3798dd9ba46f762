"""Ratings as z-scores of their annotators."""

import numpy as np
import pytest

from jaxrl_align.feedback import Annotator, Crowd, Rating, as_rows, standardise_ratings


def rate(annotator, *scores):
    return [Rating(f"p{i}", f"c{i}", score, annotator, f"f:{i}") for i, score in enumerate(scores)]


def test_each_annotator_by_hand():
    """Ann's mean is 4 and her deviation 2; Bob's are 9 and 1; in the file they alternate."""
    ann, bob = rate("ann", 2.0, 2.0, 6.0, 6.0), rate("bob", 8.0, 10.0)
    rows = [ann[0], bob[0], ann[1], ann[2], bob[1], ann[3]]
    found = standardise_ratings(rows)
    assert [row.score for row in found] == [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]
    assert [row._replace(score=0.0) for row in found] == [row._replace(score=0.0) for row in rows]
    assert rows[0].score == 2.0


@pytest.mark.parametrize("scores", [(7.0,), (3.0, 3.0), (0.1, 0.1, 0.1), (1e-3,) * 7])
def test_nothing_is_known_of_one_score_or_equal_ones(scores):
    """Three times .1 has a computed deviation of 1e-17."""
    assert [row.score for row in standardise_ratings(rate("ann", *scores))] == [0.0] * len(scores)


def test_rows_without_a_name_are_one_annotators():
    found = standardise_ratings(rate(None, 1.0, 3.0) + rate("ann", 5.0, 5.0))
    assert [row.score for row in found] == [-1.0, 1.0, 0.0, 0.0]
    assert standardise_ratings([]) == []


def test_offset_and_scale_of_a_crowd_are_gone():
    """Two exact annotators of other scales rate the same answers: their z-scores agree, up to rounding."""
    gold = np.random.default_rng(0).normal(size=40)
    annotators = [Annotator(offset=500.0, scale=100.0), Annotator(offset=300.0, scale=50.0)]
    votes = Crowd(annotators, np.random.default_rng(0)).rate(gold, low=0, high=1000, votes=2)
    rows = standardise_ratings(as_rows(Rating, votes, ["p"] * 40, ["c"] * 40))
    by = {name: [row.score for row in rows if row.annotator == name] for name in "01"}
    np.testing.assert_allclose(by["0"], by["1"], atol=0.02)
    np.testing.assert_allclose(by["0"], (gold - gold.mean()) / gold.std(), atol=0.02)
