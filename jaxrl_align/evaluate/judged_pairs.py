"""What a reward model is worth on held-out pairs: accuracy beside what length alone would reach."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxrl_align.evaluate.measures.calibration import calibration_bins
from jaxrl_align.runtime.resampling import share_interval


class PairReport(NamedTuple):
    """Measures of scores on pairs that somebody judged; print it, or read its fields."""

    pairs: int
    accuracy: float
    """Share of pairs whose chosen side scores higher; equal scores count half."""
    interval: tuple[float, float]
    """95%, of the accuracy."""
    length_accuracy: float
    """Share of pairs whose chosen side is the longer one, or the shorter one, whichever is larger."""
    matched_pairs: int
    """Pairs whose lengths differ by no more than the tolerance."""
    matched_accuracy: float
    """Accuracy on these; nan without any."""
    matched_interval: tuple[float, float]
    nats: float
    """Mean `-log sigma(margin)`; log 2 = 0.693 of one who knows nothing."""
    calibration_error: float
    """Mean distance between how sure the model is and how often it is right, over the pairs' bins."""
    bins: np.ndarray
    """[at most `bins`, 3] of equally many pairs: mean `sigma(|margin|)`, share that is right, number."""

    def __str__(self) -> str:
        """Return all measures in one line, each accuracy beside what length alone reaches."""
        share = lambda value, ends: f"{100 * value:.1f}% [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
        matched = f"of {self.matched_pairs:,} pairs of like length "
        matched += share(self.matched_accuracy, self.matched_interval)
        return (
            f"{share(self.accuracy, self.interval)} of {self.pairs:,} pairs; length alone "
            f"{100 * self.length_accuracy:.1f}%; {matched if self.matched_pairs else 'none of like length'}; "
            f"calibration error {100 * self.calibration_error:.1f} points, {self.nats:.3f} nats"
        )


def report_pairs(
    margins: ArrayLike,
    lengths: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    tolerance: float = 0.1,
    bins: int = 10,
    resamples: int = 2000,
    seed: int = 0,
) -> PairReport:
    """Return the report on a reward model's held-out pairs.

    Args:
      margins: [N] score of the chosen side less that of the rejected one, for example `align.score_margins`.
      lengths: [N, 2] length of the chosen side and of the rejected one, in any unit, at least 0.
      groups: [N] what pairs have in common, for example their debate or prompt: the intervals are then
        bootstrapped over groups. None takes pairs as independent (Wilson's interval).
      tolerance: pairs whose lengths differ by at most this share of the longer one are of like length.
      bins: of the calibration, of equally many pairs; equal margins share one.
      resamples: of the bootstrap.
      seed: of the bootstrap.

    Raises:
      ValueError: for shapes that do not fit, no pairs, a margin that is not finite, a length below 0 or
        not finite, or a single group.
    """
    margins, lengths = np.asarray(margins, float), np.asarray(lengths, float)
    if margins.ndim != 1 or not len(margins) or lengths.shape != (len(margins), 2):
        raise ValueError(
            f"margins must be [N] and lengths [N, 2], N >= 1; got {margins.shape} and {lengths.shape}"
        )
    if len(bad := np.flatnonzero(~np.isfinite(margins))):
        raise ValueError(f"margins must be finite; got {margins[bad[0]]} for pair {bad[0]}")
    if len(bad := np.flatnonzero(~(np.isfinite(lengths) & (lengths >= 0)).all(1))):
        raise ValueError(f"lengths must be at least 0; got {lengths[bad[0]].tolist()} for pair {bad[0]}")
    labels = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if labels is not None and (labels.shape != margins.shape or labels.max() == 0):
        raise ValueError(
            f"groups must be one a pair, of at least two kinds; got shape {labels.shape} and "
            f"{labels.max() + 1} kinds; leave them out for independent pairs"
        )
    right = _wins(margins)
    longer = float(np.mean(_wins(lengths[:, 0] - lengths[:, 1])))
    like = np.abs(lengths[:, 0] - lengths[:, 1]) <= tolerance * lengths.max(1)

    def ends(of: Any) -> tuple[float, float]:
        found = share_interval(right[of], None if labels is None else labels[of], draws=resamples, seed=seed)
        return found.low, found.high

    table = calibration_bins(1.0 / (1.0 + np.exp(-np.abs(margins))), right, bins=bins)
    return PairReport(
        pairs=len(margins),
        accuracy=float(right.mean()),
        interval=ends(slice(None)),
        length_accuracy=max(longer, 1 - longer),
        matched_pairs=int(like.sum()),
        matched_accuracy=float(right[like].mean()) if like.any() else np.nan,
        matched_interval=ends(like),
        nats=float(np.mean(np.logaddexp(0.0, -margins))),
        calibration_error=float(np.sum(table[:, 2] * np.abs(table[:, 0] - table[:, 1])) / len(margins)),
        bins=table,
    )


def _wins(difference: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.sign(difference)
