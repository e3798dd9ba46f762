"""Returns of environments by name: what they can be, what counts as solved, and what trained seeds show."""

import math
from typing import Any

import numpy as np

from jaxrl_align import runtime

RANGES = {
    "CartPole-v1": (0.0, 500.0),
    "Acrobot-v1": (-500.0, 0.0),
    "Pendulum-v1": (-3255.0, 0.0),
    "MountainCarContinuous-v0": (-100.0, 100.0),
    "Breakout-MinAtar": (0.0, math.inf),
    "SpaceInvaders-MinAtar": (0.0, math.inf),
}
"""Of an episode's return, under gymnax's names."""
SOLVED = {
    "CartPole-v1": 475.0,
    "Acrobot-v1": -100.0,
    "Pendulum-v1": -200.0,
    "MountainCarContinuous-v0": 90.0,
}
"""Gym's own thresholds; the pendulum has none there, and ours is near what is published of it."""


def return_range(env: str) -> tuple[float, float]:
    """Return the least and the largest return of an environment, infinite where it is not known."""
    return RANGES.get(env, (-math.inf, math.inf))


def difference_range(env: str) -> tuple[float, float]:
    """Return the least and the largest difference of two returns."""
    low, high = return_range(env)
    return low - high, high - low


def first_finite(returns: np.ndarray) -> np.ndarray:
    """Return each member's first number [M] of [steps, M]: before an episode has ended it is nan."""
    return returns[np.isfinite(returns).argmax(0), np.arange(returns.shape[1])]


def summarise(env: str, last: np.ndarray, first: np.ndarray, solved: float | None) -> dict[str, Any]:
    """Return the row of a policy's returns.

    Args:
      env: their environment.
      last: [M] after training.
      first: [M] of the first episodes.
      solved: the return that is counted; none counts nothing.
    """
    row: dict[str, Any] = {
        "interquartile mean": runtime.interquartile_mean(last),
        "mean": runtime.t_interval(last, bounds=return_range(env)),
        "less the first episodes', paired": runtime.paired_interval(
            last, first, bounds=difference_range(env)
        ),
    }
    if solved is not None:
        row[f"seeds that reach {solved:g}"] = int((last >= solved).sum())
    return row | {"each seed": last}


def judge(row: dict[str, Any], solved: float | None, published: float | None) -> dict[str, bool]:
    """Return what the row of a policy's returns shows.

    Args:
      row: `summarise`'s.
      solved: the return that every seed is to reach.
      published: what another implementation returns.
    """
    checks = {"it returns more than the first episodes": row["less the first episodes', paired"].low > 0}
    if solved is not None:
        reached = row[f"seeds that reach {solved:g}"] == len(row["each seed"])
        checks[f"every seed returns {solved:g} or more"] = reached
    if published is not None:
        text = f"the interquartile mean lies at most a tenth below the published {published:g}"
        checks[text] = row["interquartile mean"].low >= published - 0.1 * abs(published)
    return checks


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("dqn_cartpole")
