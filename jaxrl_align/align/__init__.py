"""Alignment: reward models from human feedback, and RLHF."""

from jaxrl_align.align.reward_learner import (
    RewardHParams,
    comparison_objective,
    label_objective,
    make_reward_learner,
    ranking_objective,
    rating_objective,
)
from jaxrl_align.align.reward_model import (
    RewardModel,
    choose_completions,
    init_reward_params,
    normalise_scores,
    score,
    score_cautiously,
    score_completions,
    score_margins,
    score_members,
)
from jaxrl_align.align.rlhf import RLHFHParams, init_policy, make_rlhf_learner

# fmt: off
__all__ = [
    "RLHFHParams", "RewardHParams", "RewardModel", "choose_completions", "comparison_objective",
    "init_policy", "init_reward_params", "label_objective", "make_reward_learner", "make_rlhf_learner",
    "normalise_scores", "ranking_objective", "rating_objective", "score", "score_cautiously",
    "score_completions", "score_margins", "score_members",
]
# fmt: on
