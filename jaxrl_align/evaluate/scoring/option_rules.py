"""Rules by which one of several options is taken, of the scores that `choices.py` gives."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from jaxrl_align.evaluate.scoring.choices import OptionScores

Rule = Literal["raw", "characters", "bytes", "mutual_information", "calibrated"]
BASELINES = ("mutual_information", "calibrated")
"""Rules that subtract the options' scores in another context."""


def adjust_scores(
    scores: OptionScores, options: Sequence[str], rule: Rule, baseline: np.ndarray | None = None
) -> np.ndarray:
    """Return the options' scores [K] by a rule, the higher the better.

        raw                  l_i = log p(option i | context)
        characters           l_i / characters of option i (lm-eval's acc_norm)
        bytes                l_i / UTF-8 bytes of option i (acc_bytes)
        mutual_information   l_i - log p(option i), without the question (acc_mutual_info)
        calibrated           l_i - log p(option i | content-free context) (Zhao et al. 2021,
                             arXiv:2102.09690)

    Args:
      scores: of one item.
      options: [K] their texts, whose lengths count as they are given: lm-eval's have no leading space.
      rule: one of the five.
      baseline: [K] nats, the options' log-probabilities in that other context, for the last two rules.

    Raises:
      ValueError: for another rule, a number of options or of baselines that is not K, an empty option to be
        divided by, or a baseline that is missing or not wanted.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}; got {rule!r}")
    if len(options) != len(scores.log_prob):
        raise ValueError(
            f"options must be those that were scored, {len(scores.log_prob)}; got {len(options)}"
        )
    against = rule in BASELINES
    if against != (baseline is not None):
        raise ValueError(f"rule {rule!r} takes {'a' if against else 'no'} baseline; score it beforehand")
    if baseline is not None:
        if np.shape(baseline) != scores.log_prob.shape:
            raise ValueError(
                f"baseline must have a number for each of {len(options)} options; got {np.shape(baseline)}"
            )
        return scores.log_prob - baseline
    if rule == "raw":
        return scores.log_prob
    lengths = np.array([len(text if rule == "characters" else text.encode()) for text in options])
    if not lengths.all():
        raise ValueError(f"options must not be empty for rule {rule!r}; got {list(options)}")
    return scores.log_prob / lengths


def choose_option(
    scores: OptionScores, options: Sequence[str], rule: Rule, baseline: np.ndarray | None = None
) -> int:
    """Return the index of the option that a rule takes; of equals the first. See `adjust_scores`."""
    return int(np.argmax(adjust_scores(scores, options, rule, baseline)))
