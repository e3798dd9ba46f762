import json
from pathlib import Path

import pytest

from jaxrl_align.evaluate.measures.text_overlap import (
    exact_match,
    normalise_answer,
    normalised_match,
    rouge_l,
    rouge_n,
    token_f1,
)

FIXTURE = Path(__file__).parent / "fixtures" / "metrics.json"
TEXTS = json.loads(FIXTURE.read_text(encoding="utf-8"))["texts"]


@pytest.mark.parametrize("case", TEXTS, ids=range(len(TEXTS)))
def test_against_rouge_score_and_squads_script(case):
    prediction, answers = case["prediction"], case["answers"]
    assert token_f1(prediction, answers) == pytest.approx(case["token_f1"], abs=1e-9)
    assert normalised_match(prediction, answers) == case["normalised_match"]
    for name, expected in case["rouge"].items():
        got = (
            rouge_l(prediction, answers) if name == "rougeL" else rouge_n(prediction, answers, int(name[5:]))
        )
        assert got == pytest.approx(expected, abs=1e-9), name


def test_an_answer_is_normalised_as_squads():
    assert normalise_answer("  The U.S., an\tAnswer-to a theatre ") == "us answerto theatre"


def test_the_longest_common_subsequence_by_hand():
    """police ... the gunman: 3 of 4 words of the one, of 5 of the other."""
    got = rouge_l("police kill the gunman", "Police: ended, the big gunman")
    assert got == (3 / 4, 3 / 5, pytest.approx(2 * 3 / 9))
    assert rouge_l("the gunman police", "police the gunman").f1 == pytest.approx(2 / 3)
    assert rouge_l("a b " * 40, "b a " * 40).recall == 79 / 80  # beyond a machine word


def test_n_grams_count_as_often_as_both_have_them():
    assert rouge_n("a a a b", "a a c", 1) == (2 / 4, 2 / 3, pytest.approx(4 / 7))
    assert rouge_n("a", "a b", 2) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="n must be at least 1; got 0"):
        rouge_n("a", "a", 0)


def test_the_best_of_several_gold_answers_counts():
    assert token_f1("big cat", ["dog", "cat", "big red cat"]) == pytest.approx(0.8)
    assert rouge_n("big cat", ["dog", "cat"], 1).f1 == pytest.approx(2 / 3)
    assert exact_match(" yes\n", ["no", "yes"]) == 1.0 and exact_match("Yes", "yes") == 0.0
    for score in (token_f1, normalised_match, exact_match, rouge_l):
        with pytest.raises(ValueError, match="at least one gold answer"):
            score("x", [])


def test_what_was_not_found_scores_nothing():
    assert token_f1(None, "the") == normalised_match(None, "the") == exact_match(None, "") == 0.0
    assert token_f1("", "the") == normalised_match("", "the") == 1.0
