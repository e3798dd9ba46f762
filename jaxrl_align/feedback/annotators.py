"""Simulated annotators: a gold reward that only they can read, and the faults with which they judge by it.

`compare` is one anonymous annotator with noise; `Annotator` is one with faults, of whom `crowd.Crowd` asks.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True)
class Annotator:
    """The faults of one annotator; the defaults have none.

    An annotator perceives an answer of reward `r` as `r + biases + noise * G`, with `G` a Gumbel variable of
    mean 0, drawn anew for every answer and question. So `P(a preferred) = sigmoid((r_a - r_b + biases) /
    noise)`, rankings are Plackett & Luce's, and ties are Rao & Kupper's: with `d` the gap before the noise,
    `P(a preferred) = sigmoid((d - tie_width) / noise)`.

    Raises:
      ValueError: for a field outside its range.

    Source: Luce 1959; Yellott 1977, J. Math. Psychology 15(2); Rao & Kupper 1967, JASA 62(317).
    """

    noise: float = 0.0
    """Temperature of the choice, in units of the reward, at least 0; 0 is exact."""
    position_bias: float = 0.0
    """Added to the answer shown first, in units of the reward; single answers are without."""
    length_bias: float = 0.0
    """Added for each unit of an answer's length (a token, a word), in units of the reward."""
    offset: float = 0.0
    """Of the annotator's own scale, in its points: what is perceived as `r` is rated `offset + scale * r`."""
    scale: float = 1.0
    """Points of that scale for each unit of the reward, above 0."""
    tie_width: float = 0.0
    """Two answers are called equal when they are perceived less than this apart, at least 0."""
    laziness: float = 0.0
    """Probability that an answer is given without reading, in [0, 1]."""
    habit: Literal["uniform", "first"] = "uniform"
    """What is then answered: any choice alike, or the first (answer shown, lowest rating, thumb down)."""
    malice: float = 0.0
    """Probability that what was perceived is reversed, in [0, 1], each time on its own; a tie stays one."""
    target: str | None = None
    """Name of another reward to judge by instead of the gold one; annotators who share it are a clique."""

    def __post_init__(self) -> None:
        """Refuse what is outside its range."""
        ranges = {"noise": (0, math.inf), "tie_width": (0, math.inf), "laziness": (0, 1), "malice": (0, 1)}
        for name in ("noise", "position_bias", "length_bias", "offset", "scale", *ranges):
            value = getattr(self, name)
            low, high = ranges.get(name, (-math.inf, math.inf))
            if not (math.isfinite(value) and low <= value <= high):
                expected = f"in [{low}, {high}]" if high == 1 else "at least 0" if low == 0 else "finite"
                raise ValueError(f"{name} must be a number, {expected}; got {value}; the default is no fault")
        if not self.scale > 0:
            raise ValueError(f"scale must be above 0; got {self.scale}; malice=1 reverses every judgement")
        if self.habit not in ("uniform", "first"):
            raise ValueError(f"habit must be uniform or first; got {self.habit!r}; laziness says how often")
