"""The attacks on a crowd and the defences: their votes, their weights, and a run in miniature."""

import numpy as np
import pytest

from jaxrl_align.feedback import TIE, Crowd, Votes
from tests.experiments.loading import load, read_result

annotators = load("annotators")
TRUTH = np.array([0, 1, 0, 1])


def test_attacks_flip_the_share_that_they_name():
    """Without noise and ties: of the gold labels a fifth, or half a fifth, are reversed."""
    config = annotators.Config(noise=0.0, tie_width=0.0)
    gold, popularity = np.random.default_rng(0).normal(size=(2, 4000, 2))
    for attack, flipped in {"random": 0.2, "coordinated": 0.2, "popular": 0.1}.items():
        crowd = Crowd(annotators.make_crowds(config, 0.2)[attack], np.random.default_rng(0))
        assert len(crowd.annotators) == 20
        votes = crowd.compare(gold, votes=5, others={"popularity": popularity})
        wrong = votes.label != (gold[:, 1] > gold[:, 0])[votes.item]
        assert abs(wrong.mean() - flipped) < 0.01
        guilty = np.bincount(votes.annotator, wrong) > 0
        assert guilty.sum() == (20 if attack == "random" else 4)


def test_weights_of_test_questions_by_hand():
    """Annotator 0 is right on both known pairs, 1 wrong on one and undecided on the other, 2 not asked."""
    votes = Votes(*np.array([(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, TIE), (1, 2, 0), (2, 3, 0)]).T)
    weights = annotators.weigh_by_known(votes, TRUTH, np.array([True, True, False, False]), 3)
    np.testing.assert_allclose(weights, np.log([3, 1 / 2, 1]))


def test_dropped_ties_leave_a_pair_open():
    """Three annotators agree on the first, third and fourth pair, call the second a tie, and see no fifth."""
    said = np.array([0, TIE, 1, 0])
    votes = Votes(np.tile([0, 1, 2], 4), np.repeat(np.arange(4), 3), np.repeat(said, 3))
    first = annotators.drop_ties(votes, 5)
    np.testing.assert_array_equal(first == 0.5, [False, True, False, False, True])
    np.testing.assert_array_equal(first > 0.5, [True, False, False, True, False])


def test_accuracy_counts_an_even_chance_as_half():
    assert annotators.accuracy(np.array([0.9, 0.5, 0.4, 0.1]), TRUTH) == (1 + 0.5 + 0 + 1) / 4


def test_defences_of_an_exact_crowd_are_right_but_for_ties():
    config = annotators.Config(pairs=40, noise=0.0, tie_width=0.0)
    gold = np.random.default_rng(0).normal(size=(40, 2))
    truth = (gold[:, 1] > gold[:, 0]).astype(int)
    votes = Crowd(annotators.make_crowds(config, 0.0)["random"], np.random.default_rng(0)).compare(
        gold, votes=5
    )
    for name, defend in annotators.make_defences(config, truth).items():
        np.testing.assert_array_equal(defend(votes) < 0.5, truth, err_msg=name)


@pytest.mark.slow
def test_a_run_in_miniature(tmp_path, capsys):
    out = tmp_path / "run"
    config = annotators.Config(out=str(out), seeds=2, pairs=60, shares=(0.0, 0.4))
    annotators.main(config)
    said = capsys.readouterr().out
    assert "coordinated: labels right" in said and "test questions" in said
    result = read_result(out)
    majority = result["tables"]["coordinated: labels right [%], by malicious share"]["majority"]
    assert majority["0%"]["value"] > 75 > majority["40%"]["value"] and len(result["checks"]) == 6
    less = result["tables"]["coordinated: less the majority, paired [points]"]["Dawid-Skene"]["40%"]
    assert list(result["headline"].values()) == [less]
    assert (out / "popular.png").stat().st_size > 5_000
    annotators.main(annotators.Config(out=str(out), seeds=2, pairs=60, shares=(0.0, 0.4), resume=True))
    assert capsys.readouterr().out == said


def test_the_verdict_is_that_of_labels_that_no_interval_leaves_open():
    base = np.array([60.0, 61.0])
    row = lambda gain, later=0.0: {0.4: base + gain, 0.45: base + later}
    good = {
        "coordinated": {"majority": row(0), "Dawid-Skene": row(30, -30), "test questions": row(30, 30)},
        "popular": {"majority": row(0), "Dawid-Skene": row(10), "test questions": row(10)},
        "random": {"majority": row(0), "Dawid-Skene": row(-10), "test questions": row(-5)},
    }
    failing = lambda values: [
        i for i, holds in enumerate(annotators.judge(values, 0.4, 0.45).values()) if not holds
    ]
    assert failing(good) == []

    def change(attack, defence, share, *values):
        own = good[attack]
        return good | {attack: own | {defence: own[defence] | {share: np.array(values)}}}

    assert failing(change("coordinated", "Dawid-Skene", 0.4, 60.0, 63.0)) == [0]
    assert failing(change("popular", "Dawid-Skene", 0.4, 60.0, 63.0)) == [1]
    assert failing(change("random", "Dawid-Skene", 0.4, 60.0, 59.0)) == [2]
    assert failing(good | {"random": good["random"] | {"test questions": row(5)}}) == [3]
    assert failing(change("coordinated", "Dawid-Skene", 0.45, 49.0, 49.5)) == [4]
    assert failing(change("coordinated", "test questions", 0.45, 60.0, 63.0)) == [5]


def test_a_share_below_zero_is_refused():
    with pytest.raises(ValueError, match="shares must be at least 0"):
        annotators.Config(shares=(-0.1,))
