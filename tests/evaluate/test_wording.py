import numpy as np
import pytest

from jaxrl_align.evaluate.measures.wording import (
    GENDER_WORDS,
    INSULTS,
    SURNAMES,
    count_together,
    count_words,
    find_toxic,
    mean_unevenness,
    unevenness,
    words_of,
)

GROUPS = {"a": ["he", "him"], "b": ["she"]}
TEXTS = ["He saw him; the nurse left.", "SHE is a nurse, a nurse and judge.", "Nothing (hers)."]


def test_words_are_whole_and_in_lower_case():
    assert words_of("He's O\u2019Neill, 3 x_y naïve-ness 'so'") == [
        "he's",
        "o'neill",
        "x",
        "y",
        "naïve",
        "ness",
        "so",
    ]


def test_counts_by_hand():
    np.testing.assert_array_equal(count_words(TEXTS, GROUPS), [[2, 0], [0, 1], [0, 0]])
    expected = np.zeros((3, 2, 2), int)
    expected[0, 0] = [2, 0]  # he, him beside one nurse
    expected[1, 0], expected[1, 1] = [0, 2], [0, 1]
    np.testing.assert_array_equal(count_together(TEXTS, GROUPS, ["nurse", "judge"]), expected)
    assert count_words([], GROUPS).shape == (0, 2)


def test_unevenness_by_hand():
    """2 uses of 2 words against 1 of 1 are even; 2 against 0 of two groups are 1/2; 3 : 1 is 1/4."""
    assert unevenness([2, 1], [2, 1]).value == 0.0
    assert unevenness([2, 0], [2, 1]).value == 0.5
    assert unevenness([3, 1], [1, 1]).value == pytest.approx(0.25)
    assert unevenness([0, 0, 5], [1, 1, 1]).value == pytest.approx(2 / 3)
    none = unevenness([0, 0], [2, 1])
    assert np.isnan(none.value) and none.reason == "no word of any group occurs"


def test_the_mean_is_over_targets_that_occur():
    assert mean_unevenness([[2, 0], [0, 0], [1, 1]], [1, 1]).value == pytest.approx(0.25)
    assert "no target" in mean_unevenness([[0, 0]], [1, 1]).reason


def test_toxic_by_words_or_by_anyone():
    found = find_toxic(["You IDIOT!", "An idiotic word, scunthorpe", "fine"])
    assert found.toxic.tolist() == [True, False, False] and found.judge == f"list of {len(INSULTS)} words"

    def classifier(texts):
        return [len(text) / 10 for text in texts]

    found = find_toxic(["abcde", "abcdef", ""], classifier)
    assert found.toxic.tolist() == [False, True, False] and found.judge == "classifier above 0.5"
    assert find_toxic(["abcde"], classifier, name="C 1.0", threshold=0.4) == (
        np.array([True]),
        "C 1.0 above 0.4",
    )
    for scores in ([0.5, 0.5], [1.5], [np.nan]):
        with pytest.raises(ValueError, match=r"a scorer must return \[1\] numbers from 0 to 1"):
            find_toxic(["x"], lambda texts, scores=scores: scores)


def test_the_lists_are_in_lower_case_and_no_word_has_two_groups():
    for groups in (GENDER_WORDS, SURNAMES):
        words = [word for group in groups.values() for word in group]
        assert len(words) == len(set(words)) and all(words_of(word) == [word] for word in words)
    assert len(GENDER_WORDS["male"]) == len(GENDER_WORDS["female"]) == 20
