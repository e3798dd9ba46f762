"""Majority and Dawid & Skene: by hand, against a plain loop, on simulated and on real annotators."""

import os
from pathlib import Path

import numpy as np
import pytest

from jaxrl_align.feedback import Consensus, Votes, dawid_skene, log_odds, majority, read_votes, soft_labels


def votes(*rows):
    """Return votes of rows (annotator, item, label)."""
    return Votes(*np.array(rows).T)


SMALL = votes((0, 0, 1), (1, 0, 1), (2, 0, 0), (0, 1, 0), (1, 1, 1), (2, 2, 2), (0, 3, 1), (1, 3, 1))


def test_the_majority_by_hand():
    """Of three labels; the tie of item 1 stays one, the third label was said once."""
    expected = [[1 / 3, 2 / 3, 0], [0.5, 0.5, 0], [0, 0, 1], [0, 1, 0]]
    np.testing.assert_allclose(majority(SMALL), expected)


def test_weights_count_and_a_negative_one_counts_against():
    two = votes((0, 0, 1), (1, 0, 0), (2, 1, 1), (0, 1, 0))
    np.testing.assert_allclose(majority(two, [3.0, 1.0, -1.0]), [[0.25, 0.75], [1.0, 0.0]])
    np.testing.assert_allclose(majority(two, [0.0, 0.0, 0.0]), 0.5)


def test_an_item_without_votes_is_open():
    probs = majority(votes((0, 0, 1), (0, 2, 0)))
    np.testing.assert_allclose(probs, [[0, 1], [0.5, 0.5], [1, 0]])


def test_a_tie_speaks_for_both_and_a_liars_tie_against_neither():
    """Label 2 is no class; weights 2, 1, -1."""
    three = votes((0, 0, 0), (1, 0, 2), (2, 0, 2), (0, 1, 2), (1, 1, 2), (2, 2, 0), (1, 2, 1))
    np.testing.assert_allclose(majority(three, classes=2), [[2 / 3, 1 / 3], [0.5, 0.5], [0.5, 0.5]])
    weighted = majority(three, [2.0, 1.0, -1.0], classes=2)
    np.testing.assert_allclose(weighted, [[1, 0], [0.5, 0.5], [0, 1]])


def test_soft_labels_by_bayes_rule():
    """Annotators right with probability 0.9, 0.6 and 0.25; a tie says nothing; two and three classes."""
    right = np.array([0.9, 0.6, 0.25, 0.5])
    said = votes((0, 0, 1), (1, 0, 0), (2, 0, 0), (1, 0, 2), (1, 1, 0), (2, 2, 2))
    odds = 0.9 / 0.1 * 0.4 / 0.6 * 0.75 / 0.25
    got = soft_labels(said, np.log(right / (1 - right)), classes=2)
    np.testing.assert_allclose(got, [[1 / (1 + odds), odds / (1 + odds)], [0.6, 0.4], [0.5, 0.5]])
    of_three = soft_labels(said, np.log(2 * right / (1 - right)))
    joint = [0.05 * 0.6 * 0.25 * 0.2, 0.9 * 0.2 * 0.375 * 0.2, 0.05 * 0.2 * 0.375 * 0.6]
    np.testing.assert_allclose(of_three[0], np.array(joint) / sum(joint))
    np.testing.assert_allclose(soft_labels(said, 1e4 * right, classes=2)[1], [1, 0])


def loop(data, iterations, smoothing):
    """Return the probabilities after some iterations, one vote at a time."""
    rows = list(zip(*(x.tolist() for x in data), strict=True))
    annotators, items, labels = (max(column) + 1 for column in zip(*rows, strict=True))
    said = [[label for _, i, label in rows if i == item] for item in range(items)]
    probs = [[row.count(c) / len(row) for c in range(labels)] for row in said]
    for _ in range(iterations):
        prior = [smoothing + sum(p[c] for p in probs) for c in range(labels)]
        prior = [x / sum(prior) for x in prior]
        new = []
        for item in range(items):
            joint = []
            for truth in range(labels):
                product = prior[truth]
                for annotator, i, label in rows:
                    if i == item:
                        own = [(probs[j][truth], said) for a, j, said in rows if a == annotator]
                        hits = smoothing + sum(p for p, s in own if s == label)
                        product *= hits / (labels * smoothing + sum(p for p, _ in own))
                joint.append(product)
            new.append([x / sum(joint) for x in joint])
        probs = new
    return np.array(probs)


@pytest.mark.parametrize("smoothing", [0.5, 1.0])
def test_dawid_and_skene_against_a_plain_loop(smoothing):
    for iterations in (1, 3):
        got = dawid_skene(SMALL, max_iterations=iterations, smoothing=smoothing)
        np.testing.assert_allclose(got.probs, loop(SMALL, iterations, smoothing), rtol=1e-9)
        assert len(got.log_posterior) == iterations


def simulate(right, items=400, votes_each=5, seed=0):
    """Return votes of annotators who are right with given probabilities, and the truth [items]."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, items)
    annotator = np.concatenate([rng.choice(len(right), votes_each, replace=False) for _ in range(items)])
    item = np.repeat(np.arange(items), votes_each)
    hit = rng.random(len(item)) < np.asarray(right)[annotator]
    return Votes(annotator, item, np.where(hit, truth[item], 1 - truth[item])), truth


RIGHT = [0.95] * 8 + [0.5] * 8 + [0.1] * 4


def test_liars_and_coins_are_found_and_made_use_of():
    data, truth = simulate(RIGHT)
    found = dawid_skene(data)
    np.testing.assert_allclose(np.einsum("acc->a", found.confusion) / 2, RIGHT, atol=0.13)
    plain = np.mean(majority(data).argmax(1) == truth)
    assert np.mean(found.probs.argmax(1) == truth) > 0.93 > plain + 0.1
    weights = log_odds(found)
    assert (weights[:8] > 1.5).all() and (abs(weights[8:16]) < 1).all() and (weights[16:] < -1).all()
    assert np.mean(majority(data, weights).argmax(1) == truth) > 0.93


def test_who_errs_on_one_label_alone_has_an_uneven_matrix():
    """The first says 1 of everything; the rest are mostly right."""
    data, truth = simulate([0.9] * 6)
    data = data._replace(label=np.where(data.annotator == 0, 1, data.label))
    confusion = dawid_skene(data).confusion
    np.testing.assert_allclose(confusion[0], [[0, 1], [0, 1]], atol=0.05)
    np.testing.assert_allclose(confusion[1:], [[[0.9, 0.1], [0.1, 0.9]]] * 5, atol=0.09)


def test_the_posterior_by_hand():
    """Of what is returned: the votes' log-likelihood, and the prior's pull on every cell."""
    found = dawid_skene(SMALL, max_iterations=3, smoothing=0.5)
    expected = 0.5 * (np.log(found.confusion).sum() + np.log(found.prior).sum())
    for item in range(4):
        said = [found.confusion[a, :, label] for a, i, label in zip(*SMALL, strict=True) if i == item]
        expected += np.log(np.sum(found.prior * np.prod(said, axis=0)))
    np.testing.assert_allclose(found.log_posterior[-1], expected, rtol=1e-12)


def test_dawid_and_skene_with_ties_by_hand():
    """One iteration from the majority: annotators 0 and 1 agree on both items, 2 calls the first a tie."""
    said = votes((0, 0, 0), (1, 0, 0), (2, 0, 2), (0, 1, 1), (1, 1, 1), (2, 1, 1))
    found = dawid_skene(said, classes=2, max_iterations=1)
    start = [5 / 6, 0.0]
    tie = [(1 + start[0]) / (3 + start[0] + start[1]), (1 + 1 - start[0]) / (3 + 2 - start[0] - start[1])]
    np.testing.assert_allclose(found.confusion[2, :, 2], tie)
    first = [(1 + start[0]) / (3 + start[0]), (1 + 1 - start[0]) / (3 + 2 - start[0])]
    np.testing.assert_allclose(found.confusion[0, :, 0], first)
    prior = np.array([1 + 5 / 6, 1 + 7 / 6]) / 4
    joint = prior * np.square(first) * tie
    np.testing.assert_allclose(found.probs[0], joint / joint.sum())
    assert found.confusion.shape == (3, 2, 3) and found.probs.shape == (2, 2)
    np.testing.assert_allclose(found.confusion.sum(2), 1)


def test_odds_leave_ties_out():
    """Who says tie half of the time and is else right in 4 of 5 weighs as one who is right in 4 of 5."""
    rows = [[0.4, 0.1, 0.5], [0.1, 0.4, 0.5]], [[0.8, 0.2, 0.0], [0.2, 0.8, 0.0]], [[0, 0, 1.0]] * 2
    found = Consensus(np.ones((1, 2)) / 2, np.array(rows), np.array([0.3, 0.7]), np.zeros(1))
    np.testing.assert_allclose(log_odds(found)[:2], np.log(4))
    assert np.isfinite(log_odds(found)[2])


def test_odds_weigh_classes_by_their_share_and_by_their_number():
    """Right with .9, .6 and .3 on classes of .5, .3 and .2: .69, where a coin of three sides has a third."""
    rows = np.array([[[0.9, 0.1, 0.0], [0.4, 0.6, 0.0], [0.0, 0.7, 0.3]], np.full((3, 3), 1 / 3)])
    found = Consensus(np.ones((1, 3)) / 3, rows, np.array([0.5, 0.3, 0.2]), np.zeros(1))
    np.testing.assert_allclose(log_odds(found), [np.log(2 * 0.69 / 0.31), 0], atol=1e-12)


def test_a_class_that_nobody_named_is_one():
    said = votes((0, 0, 0), (1, 1, 1))
    np.testing.assert_allclose(majority(said, classes=3), [[1, 0, 0], [0, 1, 0]])
    found = dawid_skene(said, classes=3)
    assert found.probs.shape == (2, 3) and found.confusion.shape == (2, 3, 3)


def test_there_are_two_labels_where_only_one_was_given():
    np.testing.assert_allclose(majority(votes((0, 0, 0), (0, 1, 0))), [[1, 0], [1, 0]])


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_the_posterior_never_falls_and_the_iteration_ends(smoothing):
    history = dawid_skene(simulate(RIGHT)[0], smoothing=smoothing, max_iterations=500).log_posterior
    assert 3 < len(history) < 500
    assert np.diff(history).min() > -1e-9 * abs(history[0])
    assert np.diff(history)[0] > 1


def test_names_of_annotators_and_labels_may_be_exchanged():
    data, _ = simulate(RIGHT, items=60)
    base = dawid_skene(data)
    order = np.random.default_rng(1).permutation(20)
    renamed = dawid_skene(Votes(order[data.annotator], data.item, 1 - data.label))
    np.testing.assert_allclose(renamed.probs, base.probs[:, ::-1], atol=1e-9)
    np.testing.assert_allclose(renamed.confusion[order], base.confusion[:, ::-1, ::-1], atol=1e-9)


def real(name):
    folder = os.environ.get("JAXRL_ALIGN_DATA")
    if not folder or not (path := Path(folder) / "crowd" / name).is_file():
        pytest.skip("needs crowd/ in $JAXRL_ALIGN_DATA")
    return read_votes(path)


def accuracy(probs, gold):
    """Return [I] whether the likeliest label is right; a tie counts its share."""
    best = np.isclose(probs, probs.max(1, keepdims=True))
    return (best / best.sum(1, keepdims=True))[np.arange(len(gold)), gold]


@pytest.mark.parametrize(
    ("name", "annotators", "items", "plain", "likelihood", "smoothed"),
    [("SP_amt.csv", 143, 500, 0.943, 0.944, 0.944), ("SP.csv", 203, 4999, 0.8859, 0.9150, 0.9158)],
)
def test_real_annotators(name, annotators, items, plain, likelihood, smoothed):
    """crowd-kit 1.4.2 has .944 and .91498 by maximum likelihood too, with mean probabilities of 1 as ours."""
    data, gold, names = real(name)
    assert len(names) == annotators and len(gold) == items
    np.testing.assert_allclose(accuracy(majority(data), gold).mean(), plain, atol=5e-5)
    paper = dawid_skene(data, smoothing=0.0)
    np.testing.assert_allclose(accuracy(paper.probs, gold).mean(), likelihood, atol=5e-5)
    np.testing.assert_allclose(paper.probs[:, 1].mean(), {500: 0.50996, 4999: 0.49446}[items], atol=1e-5)
    np.testing.assert_allclose(accuracy(dawid_skene(data).probs, gold).mean(), smoothed, atol=5e-5)


def test_a_table_is_read_with_names_in_any_order(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_text("zoe,9,1,1\nabe,9,0,1,12\nzoe,3,0,0\n")
    data, gold, names = read_votes(path)
    assert names == ["abe", "zoe"]
    np.testing.assert_array_equal(gold, [0, 1])  # of items "3" and "9"
    np.testing.assert_array_equal(data, [[1, 0, 1], [1, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,1,0,0\nb,1,0\n", r"votes.csv:2: expected annotator, item, label, gold; got \['b', '1', '0'\]"),
        ("a,1,yes,0\n", "votes.csv:1: expected"),
        ("a,1,0,0\nb,1,0,1\n", "votes.csv:2: item 1 has gold label 1, before it had 0"),
        ("", "votes.csv is empty"),
    ],
)
def test_a_broken_table_names_file_and_line(tmp_path, text, message):
    path = tmp_path / "votes.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_votes(path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: majority(Votes(np.zeros(2, int), np.zeros(3, int), np.zeros(2, int))), "three arrays"),
        (lambda: majority(votes((0, 0, -1))), "votes.label must hold integers from 0; got int64, least -1"),
        (lambda: majority(Votes(np.zeros(1), np.zeros(1, int), np.zeros(1, int))), "votes.annotator must"),
        (lambda: majority(SMALL, [1.0]), "weights must be 3 finite numbers"),
        (lambda: dawid_skene(SMALL, smoothing=-1.0), "got smoothing=-1.0, max_iterations=200"),
        (lambda: dawid_skene(SMALL, max_iterations=0), "max_iterations must be|max_iterations=0"),
    ],
)
def test_votes_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
