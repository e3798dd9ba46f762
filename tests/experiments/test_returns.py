"""What trained seeds show, by hand."""

import math

import numpy as np

from jaxrl_align.runtime import Interval
from tests.experiments.loading import load

returns = load("returns")


def test_ranges_are_of_returns_and_of_their_differences():
    assert returns.return_range("CartPole-v1") == (0, 500)
    assert returns.difference_range("Acrobot-v1") == (-500, 500)
    assert returns.return_range("mine") == returns.difference_range("mine") == (-math.inf, math.inf)
    assert returns.difference_range("Breakout-MinAtar") == (-math.inf, math.inf)


def test_the_first_return_is_that_of_the_first_episode_that_ended():
    played = np.array([[np.nan, 1.0], [2.0, 3.0], [4.0, 5.0]])
    np.testing.assert_array_equal(returns.first_finite(played), [2.0, 1.0])


def test_a_row_of_seeds():
    last, first = np.array([500.0, 470.0, 500.0, 500.0]), np.array([20.0, 10.0, 20.0, 20.0])
    row = returns.summarise("CartPole-v1", last, first, 475.0)
    assert row["mean"].value == 492.5 and row["mean"].high == 500 and row["interquartile mean"].value == 500
    assert row["less the first episodes', paired"].value == 475 and row["seeds that reach 475"] == 3
    assert not any("reach" in column for column in returns.summarise("CartPole-v1", last, first, None))


def test_the_verdict_is_that_of_gain_goal_and_publication():
    def judged(gain=2.0, reach=2, middle=-95.0, solved=-100.0, published=-90.0):
        row = {
            "less the first episodes', paired": Interval(gain, gain - 1, gain + 1, "t"),
            "interquartile mean": Interval(middle, middle - 3, middle + 3, "bootstrap"),
            "seeds that reach -100": reach,
            "each seed": [0.0, 0.0],
        }
        return list(returns.judge(row, solved, published).values())

    assert judged() == [True] * 3
    assert judged(gain=0.5) == [False, True, True] and judged(reach=1) == [True, False, True]
    assert judged(middle=-97.0) == [True, True, False] and judged(published=None) == [True, True]
    assert judged(middle=84.0, published=90.0) == [True] * 3 and judged(solved=None, published=None) == [True]
