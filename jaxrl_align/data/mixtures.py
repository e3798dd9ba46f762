"""Mixtures of text sources and of tasks: how often each is drawn, and how often that reads it through."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Source(NamedTuple):
    """One text source of a mixture."""

    name: str
    tokens: float
    """Number of tokens it holds."""
    weight: float
    """Its share of the mixture as published."""


GPT3_SOURCES = (
    Source("Common Crawl, filtered", 410e9, 0.60),
    Source("WebText2", 19e9, 0.22),
    Source("Books1", 12e9, 0.08),
    Source("Books2", 55e9, 0.08),
    Source("Wikipedia", 3e9, 0.03),
)
"""Brown et al. 2020, table 2.2, as docs/lectures.md (C10) shows it; the printed weights sum to 1.01."""


class TaskCollection(NamedTuple):
    """One collection of an instruction-tuning mixture."""

    name: str
    datasets: int
    categories: int
    tasks: int


FLAN_COLLECTIONS = (
    TaskCollection("T0-SF", 55, 14, 193),
    TaskCollection("Muffin", 69, 27, 80),
    TaskCollection("CoT (reasoning)", 9, 1, 9),
    TaskCollection("Natural Instructions v2", 372, 108, 1_554),
)
"""Chung et al. 2022 (arXiv:2210.11416), figure 2, as docs/lectures.md (E7) shows it: 1,836 tasks. The data
sets sum to 505; the paper counts 473, since collections share some."""


def normalise_weights(weights: ArrayLike) -> np.ndarray:
    """Return weights that sum to 1.

    Args:
      weights: [S], none below 0.

    Raises:
      ValueError: if there is none, one is negative or not finite, or all are 0.
    """
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 1 or not weights.size or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"weights must be a list of finite numbers of at least 0; got {weights.tolist()}")
    if not weights.sum():
        raise ValueError("at least one weight must be above 0; got only zeros")
    return weights / weights.sum()


def epochs_per_source(weights: ArrayLike, tokens: ArrayLike, total: float) -> np.ndarray:
    """Return how often training on `total` tokens reads each source through: `total w_i / n_i`.

    Args:
      weights: [S] shares of the mixture, taken as they are, as the lecture does with weights that sum to
        1.01; pass `normalise_weights(weights)` for what a sampler does.
      tokens: [S] sizes.
      total: tokens of training.

    Raises:
      ValueError: if the lengths differ or a source holds no token.
    """
    weights, tokens = np.asarray(weights, np.float64), np.asarray(tokens, np.float64)
    if weights.shape != tokens.shape or (tokens <= 0).any():
        raise ValueError(
            f"every weight needs a source of at least one token; got {weights.size} weights for sizes "
            f"{tokens.tolist()}"
        )
    return total * weights / tokens
