"""A crowd of simulated annotators, asked for feedback of all six kinds.

crowd = Crowd([Annotator(noise=0.5)] * 20 + [Annotator(malice=1.0)] * 5, np.random.default_rng(0))
votes = crowd.compare(gold, votes=3)  # of three different annotators for each pair; gold [N, 2]
first_is_better = dawid_skene(votes, classes=2).probs[:, 0]
rows = as_rows(Comparison, votes, prompts, answers)
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike

from jaxrl_align.feedback.annotators import Annotator
from jaxrl_align.feedback.consensus import Votes
from jaxrl_align.feedback.judgements import TIE, Judgements
from jaxrl_align.feedback.sentiment import write_remarks


class Asking(TypedDict, total=False):
    """What every method of a `Crowd` takes by name."""

    votes: int
    """Different annotators for each item, drawn evenly, from 1 to their number; 1 unless given."""
    who: ArrayLike
    """[N, votes] int, the annotators of each item, instead of a draw."""
    lengths: ArrayLike
    """Length of each answer, in the shape of `gold`; needed where an annotator has a `length_bias`."""
    others: Mapping[str, ArrayLike]
    """Name -> another reward, in the shape of `gold`; needed for each `target` of an annotator."""
    shuffle: bool
    """Show the answers of an item to each annotator in an order of their own; else in that of `gold`."""


class _Reading(NamedTuple):
    annotator: np.ndarray  # [V]
    item: np.ndarray  # [V]
    perceived: np.ndarray  # [V, K]
    shown: np.ndarray  # [V, K] place on the screen, from 0
    lazy: np.ndarray  # [V]
    reverse: np.ndarray  # [V]


class Crowd:
    """Annotators who are asked at random; the answers name who gave them.

    Each question to one annotator is a query, however many answers it shows. How many random numbers are
    drawn depends on shapes and options alone: crowds of equal size and seed are asked alike and have equal
    luck, so that only their faults make them differ.

    Args:
      annotators: A of them, at least one.
      rng: draws who is asked, and all their noise.

    Raises:
      ValueError: for no annotators, or one that is no `Annotator`.
    """

    queries: np.ndarray
    """[A] int64, how often each annotator was asked so far."""

    def __init__(self, annotators: Sequence[Annotator], rng: np.random.Generator) -> None:
        if not len(annotators):
            raise ValueError("annotators must be at least one; got none; [Annotator()] never errs")
        for i, annotator in enumerate(annotators):
            if not isinstance(annotator, Annotator):
                kind = type(annotator).__name__
                raise ValueError(f"annotators must be Annotator each; got {kind} at {i}; Annotator() is one")
        self.annotators = tuple(annotators)
        self.queries = np.zeros(len(annotators), np.int64)
        self._rng = rng

    def compare(self, gold: ArrayLike, **asking: Unpack[Asking]) -> Votes:
        """Ask which of two answers is better.

        Args:
          gold: [N, 2] hidden reward; the first column is shown first, unless `shuffle`.
          asking: see `Asking`.

        Returns:
          Votes with the labels 0 (the first is better), 1 (the second) and `TIE`.

        Raises:
          ValueError: for gold that is not finite or of another shape, unknown annotators, more votes than
            annotators, or lengths or another reward that an annotator needs and that are missing.
        """
        reading = self._read(_check_gold(gold, 2, 2), **asking)
        places = self._place(reading)
        difference = np.sign(places[:, 0] - places[:, 1])
        return Votes(reading.annotator, reading.item, np.array([TIE, 1, 0])[difference])

    def rank(self, gold: ArrayLike, **asking: Unpack[Asking]) -> Judgements:
        """Ask for an order of K >= 2 answers, gold [N, K].

        Answers whose neighbours in the order are less than `tie_width` apart share a place.

        Returns:
          Places [V, K], 1 for the best; the next after a tie is one more (1, 1, 2).

        Raises:
          ValueError: as `compare`.
        """
        reading = self._read(_check_gold(gold, 2), **asking)
        return Judgements(reading.annotator, reading.item, self._place(reading))

    def correct(self, gold: ArrayLike, **asking: Unpack[Asking]) -> Votes:
        """Ask what should stand in an answer's place: the best perceived of K texts, gold [N, K].

        Returns:
          Votes whose label is a column; 0 is the answer itself, which is then left as it is.

        Raises:
          ValueError: as `compare`.
        """
        reading = self._read(_check_gold(gold, 2), **asking)
        return Votes(reading.annotator, reading.item, self._order(reading)[:, 0])

    def rate(self, gold: ArrayLike, *, low: int = 1, high: int = 10, **asking: Unpack[Asking]) -> Votes:
        """Ask for ratings of single answers, gold [N], rounded and kept within [low, high].

        Returns:
          Votes whose label is the rating, a whole number from `low` to `high`.

        Raises:
          ValueError: as `compare`; or unless 0 <= low < high are whole numbers.
        """
        whole = all(isinstance(x, int | np.integer) for x in (low, high))
        if not (whole and 0 <= low < high):
            raise ValueError(f"low and high must be whole, 0 <= low < high; got {low}, {high}; try 1, 10")
        reading, own = self._scale(gold, asking)
        score = np.clip(np.rint(own), low, high).astype(np.int64)
        score = np.where(reading.reverse, low + high - score, score)
        guess = self._guess(reading, low, high)
        return Votes(reading.annotator, reading.item, np.where(reading.lazy, guess, score))

    def label(self, gold: ArrayLike, threshold: float = 0.0, **asking: Unpack[Asking]) -> Votes:
        """Ask for a thumb up or down of single answers, gold [N].

        Args:
          gold: [N] hidden reward.
          threshold: the thumb goes up from here on each annotator's own scale.
          asking: see `Asking`.

        Returns:
          Votes with the labels 1 (up) and 0 (down).

        Raises:
          ValueError: as `compare`; or for a threshold that is not finite.
        """
        if not np.isfinite(threshold):
            raise ValueError(f"threshold must be finite; got {threshold}; np.median(gold) halves the answers")
        reading, own = self._scale(gold, asking)
        up = (own >= threshold) != reading.reverse
        guess = self._guess(reading, 0, 1)
        return Votes(reading.annotator, reading.item, np.where(reading.lazy, guess, up).astype(np.int64))

    def comment(
        self, gold: ArrayLike, *, low: int = 1, high: int = 10, **asking: Unpack[Asking]
    ) -> Judgements:
        """Ask for remarks in words on single answers, gold [N]; the mood is that of the rating.

        Returns:
          Remarks [V].

        Raises:
          ValueError: as `rate`.
        """
        annotator, item, score = self.rate(gold, low=low, high=high, **asking)
        return Judgements(annotator, item, write_remarks((score - low) / (high - low), self._rng))

    def _traits(self, name: str, annotator: np.ndarray) -> np.ndarray:
        """Return one field of those who were asked, [V, 1]."""
        return np.array([getattr(a, name) for a in self.annotators])[annotator, None]

    def _assign(self, items: int, votes: int, who: ArrayLike | None) -> np.ndarray:
        """Return who is asked, [items, votes]."""
        count = len(self.annotators)
        if who is None:
            if not 1 <= votes <= count:
                raise ValueError(
                    f"votes must be from 1 to the number of annotators; got votes={votes}, {count} annotators"
                )
            return self._rng.random((items, count)).argsort(1)[:, :votes]
        asked = np.asarray(who)
        if not np.issubdtype(asked.dtype, np.integer) or asked.ndim != 2 or len(asked) != items:
            raise ValueError(
                f"who must be integers [{items}, votes], one row an item; got {asked.dtype} {asked.shape}"
            )
        if unknown := sorted({int(i) for i in asked.ravel() if not 0 <= i < count}):
            raise ValueError(f"who must be annotators from 0 to {count - 1}; got {unknown[:5]}")
        return asked

    def _read(
        self,
        gold: np.ndarray,
        *,
        votes: int = 1,
        who: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        others: Mapping[str, ArrayLike] | None = None,
        shuffle: bool = False,
    ) -> _Reading:
        """Return what annotators perceive of answers, gold [N] or [N, K], before they reverse or guess."""
        lengths = self._check_lengths(lengths, gold)
        rewards = self._check_others(others or {}, gold)
        gold = gold.reshape(len(gold), -1)
        asked = self._assign(len(gold), votes, who)
        annotator, item = asked.ravel(), np.repeat(np.arange(len(gold)), asked.shape[1])
        rng, shape = self._rng, (len(item), gold.shape[1])
        perceived = gold[item]
        for name, reward in rewards.items():
            perceived = np.where(self._traits("target", annotator) == name, reward[item], perceived)
        shown = np.tile(np.arange(shape[1]), (shape[0], 1))
        shown = rng.permuted(shown, axis=1) if shuffle else shown
        if shape[1] > 1:
            perceived = perceived + self._traits("position_bias", annotator) * (shown == 0)
        perceived = perceived + self._traits("length_bias", annotator) * lengths[item]
        perceived = perceived + self._traits("noise", annotator) * (rng.gumbel(size=shape) - np.euler_gamma)
        lazy, reverse = (
            rng.random(shape[0]) < self._traits(name, annotator)[:, 0] for name in ("laziness", "malice")
        )
        np.add.at(self.queries, annotator, 1)
        return _Reading(annotator, item, perceived, shown, lazy, reverse)

    def _check_lengths(self, lengths: ArrayLike | None, gold: np.ndarray) -> np.ndarray:
        biased = [i for i, a in enumerate(self.annotators) if a.length_bias]
        if lengths is None and biased:
            raise ValueError(
                f"lengths must be given as annotators have a length_bias; got none, biased are {biased[:5]}"
            )
        return _check_like("lengths", np.zeros(gold.shape) if lengths is None else lengths, gold)

    def _check_others(self, others: Mapping[str, ArrayLike], gold: np.ndarray) -> dict[str, np.ndarray]:
        targets = {a.target for a in self.annotators if a.target is not None}
        if missing := sorted(targets - others.keys()):
            raise ValueError(
                f"others must hold the rewards that annotators judge by; got none for {', '.join(missing)}"
            )
        return {name: _check_like(f"others[{name!r}]", others[name], gold) for name in sorted(targets)}

    def _order(self, reading: _Reading) -> np.ndarray:
        """Return the columns [V, K], best first; equals in an order drawn by lot."""
        lot = self._rng.random(reading.perceived.shape)
        judged = np.where(reading.reverse[:, None], -1.0, 1.0) * reading.perceived
        order = np.lexsort((lot, -judged), axis=-1)
        first = self._traits("habit", reading.annotator) == "first"
        guess = np.where(first, reading.shown, lot).argsort(1)
        return np.where(reading.lazy[:, None], guess, order)

    def _place(self, reading: _Reading) -> np.ndarray:
        """Return the place of each answer [V, K]."""
        order = self._order(reading)
        gap = np.abs(np.diff(np.take_along_axis(reading.perceived, order, 1), axis=1))
        lower = (gap >= self._traits("tie_width", reading.annotator)) | reading.lazy[:, None]
        steps = np.concatenate([np.ones((len(gap), 1), np.int64), lower], 1).cumsum(1)
        places = np.empty_like(steps)
        np.put_along_axis(places, order, steps, 1)
        return places

    def _scale(self, gold: ArrayLike, asking: Asking) -> tuple[_Reading, np.ndarray]:
        """Return the reading of single answers, and what is perceived on each annotator's own scale [V]."""
        reading = self._read(_check_gold(gold, 1), **asking)
        offset, scale = (self._traits(name, reading.annotator) for name in ("offset", "scale"))
        return reading, (offset + scale * reading.perceived)[:, 0]

    def _guess(self, reading: _Reading, low: int, high: int) -> np.ndarray:
        """Return what is answered without reading [V]."""
        uniform = self._rng.integers(low, high + 1, len(reading.item))
        return np.where(self._traits("habit", reading.annotator)[:, 0] == "first", low, uniform)


def _check_gold(gold: ArrayLike, axes: int, columns: int | None = None) -> np.ndarray:
    gold = np.asarray(gold, float)
    expected = "[N]" if axes == 1 else f"[N, {columns or 'K >= 2'}]"
    narrow = axes == 2 and gold.ndim == 2 and not (gold.shape[1] >= 2 and columns in (None, gold.shape[1]))
    if gold.ndim != axes or narrow or not len(gold):
        raise ValueError(f"gold must be {expected} with N >= 1; got {gold.shape}; np.stack(..., -1) joins")
    _check_like("gold", gold, gold)
    return gold


def _check_like(name: str, values: ArrayLike, gold: np.ndarray) -> np.ndarray:
    """Return finite values of gold's shape as [N, K], K = 1 for single answers."""
    values = np.asarray(values, float)
    if values.shape != gold.shape:
        raise ValueError(f"{name} must have gold's shape {gold.shape}; got {values.shape}; one an answer")
    if len(bad := np.argwhere(~np.isfinite(values))):
        at = tuple(bad[0].tolist())
        raise ValueError(f"{name} must be finite; got {values[at]} for item {at[0]}; leave that item out")
    return values.reshape(len(values), -1)
