"""Alignment: reward models from comparisons, and RLHF."""

from jaxrl_align.align.reward_model import (
    RewardHParams,
    RewardModel,
    init_reward_params,
    make_reward_learner,
    normalise_scores,
    pair_answers,
    score,
    score_margins,
)
from jaxrl_align.align.rlhf import RLHFHParams, init_policy, make_rlhf_learner

# fmt: off
__all__ = [
    "RLHFHParams", "RewardHParams", "RewardModel", "init_policy", "init_reward_params",
    "make_reward_learner", "make_rlhf_learner", "normalise_scores", "pair_answers", "score",
    "score_margins",
]
# fmt: on
