"""Simulated annotators: a gold reward that only they can read, and noisy comparisons made under it."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np


class PlainProse:
    """The gold reward of the demonstration: a finished sentence in plain words that does not repeat itself.

    `2 [ends with a full stop and then stops] + 2 plain + distinct`, in [0, 5]: `plain` is the share of the
    words that are ordinary lower-case words of the corpus (quoted names, code and misspellings are not),
    counted against at least `min_words` words so that silence earns nothing, and `distinct` is the share of
    distinct words, counted likewise.
    """

    def __init__(self, corpus: Sequence[str], *, min_count: int = 3, min_words: int = 6) -> None:
        counts = Counter(
            word for text in corpus for word in re.findall(r"(?<![\w\"'`.])[a-z]+(?![\w\"'`(=])", text)
        )
        self._words = {word for word, count in counts.items() if count >= min_count}
        self._min_words = min_words

    def __call__(self, response: str, stopped: bool) -> float:
        """Score one response; `stopped` says whether the writer ended it."""
        words = [word.rstrip(".,;:") for word in response.split()]
        finished = float(stopped and response.rstrip().endswith("."))
        count = max(len(words), self._min_words)
        plain = sum(word in self._words for word in words) / count
        distinct = len(set(words)) / count
        return 2.0 * finished + 2.0 * plain + distinct


def compare(
    gold_a: np.ndarray, gold_b: np.ndarray, rng: np.random.Generator, *, temperature: float = 1.0
) -> np.ndarray:
    """Let noisy annotators compare pairs: P(a preferred) = sigmoid((gold_a - gold_b) / temperature).

    Args:
      gold_a: [N] hidden reward of the first of each pair.
      gold_b: [N] hidden reward of the second.
      rng: the annotators' noise.
      temperature: > 0; towards 0 they agree with the gold reward.

    Returns:
      [N] bool, True where the first is preferred (Bradley & Terry 1952).

    Raises:
      ValueError: if the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; got {temperature}; 1e-6 makes annotators exact")
    gap = (np.asarray(gold_a) - np.asarray(gold_b)) / temperature
    # sigmoid(x) = (1 + tanh(x / 2)) / 2 never overflows.
    return rng.random(gap.shape) < 0.5 * (1.0 + np.tanh(0.5 * gap))
