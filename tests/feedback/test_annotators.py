import warnings

import numpy as np
import pytest

from jaxrl_align.feedback.annotators import PlainProse, compare

CORPUS = ["the cat sees a dog and the dog sees the cat"] * 3 + ['call "print" or x.strip or len(y) if rare']


@pytest.mark.parametrize(
    ("response", "stopped", "gold"),
    [
        (" the cat sees a dog and.", True, 2 + 2 + 1),
        (" the cat sees a dog and.", False, 2 + 1),
        (" the cat sees a dog and", True, 2 + 1),
        (" the the the the the the.", True, 2 + 2 + 1 / 6),
        (" the Cat zees a dog x1.", True, 2 + 2 * 3 / 6 + 1),
        (" the cat.", True, 2 + 2 * 2 / 6 + 2 / 6),
        (" cat, dog; the: sees a and", False, 2 + 1),
        (" the cat sees a dog and the cat.", True, 2 + 2 + 6 / 8),
        ("", True, 0.0),
        ("   ", False, 0.0),
        (".", True, 2 + 0 + 1 / 6),
    ],
)
def test_the_gold_reward_by_hand(response, stopped, gold):
    assert PlainProse(CORPUS)(response, stopped) == pytest.approx(gold)


def test_only_frequent_plain_words_of_the_corpus_count_as_plain():
    words = 'the cat sees a dog "print" print x.strip strip len if'
    plain = {word for word in words.split() if PlainProse(CORPUS)(word, False) > 1 / 6 + 1e-9}
    assert plain == {"the", "cat", "sees", "a", "dog"}
    assert PlainProse(CORPUS, min_count=1)("if", False) > 1 / 6 + 1e-9
    for quoted in ("print", "strip", "len"):
        assert PlainProse(CORPUS, min_count=1)(quoted, False) == pytest.approx(1 / 6)


def test_annotators_choose_by_bradley_terry():
    """P(a) = sigmoid((gold_a - gold_b) / temperature), within 5 standard errors of 20,000 choices."""
    for gap, temperature in [(0.0, 1.0), (1.0, 1.0), (-0.6, 0.3), (2.0, 4.0)]:
        chosen = compare(
            np.full(20_000, 1.0 + gap), np.ones(20_000), np.random.default_rng(0), temperature=temperature
        )
        assert chosen.dtype == bool
        probability = 1 / (1 + np.exp(-gap / temperature))
        error = (probability * (1 - probability) / 20_000) ** 0.5
        assert abs(chosen.mean() - probability) < 5 * error


def test_cold_annotators_agree_with_the_gold_reward_without_overflow():
    a, b = np.array([5.0, 0.0, -1e6]), np.array([0.0, 5.0, 1e6])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = compare(a, b, np.random.default_rng(0), temperature=1e-6)
    np.testing.assert_array_equal(chosen, [True, False, False])


def test_choices_follow_the_generator():
    gold = np.zeros(100)
    draw = lambda seed: compare(gold, gold, np.random.default_rng(seed))
    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_means_nothing_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0; got"):
        compare(np.zeros(1), np.zeros(1), np.random.default_rng(0), temperature=temperature)
