"""Alignment: reward models from human feedback, rewards composed of parts, and RLHF."""

from jaxrl_align.align.host_rewards import host_reward
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
from jaxrl_align.align.rewards import combine_rewards, likelihood_reward, model_reward, token_reward
from jaxrl_align.align.rlhf import RLHFHParams, init_policy, make_rlhf_learner, rlhf_loss

# fmt: off
__all__ = [
    "RLHFHParams", "RewardHParams", "RewardModel", "choose_completions", "combine_rewards",
    "comparison_objective", "host_reward", "init_policy", "init_reward_params", "label_objective",
    "likelihood_reward", "make_reward_learner", "make_rlhf_learner", "model_reward", "normalise_scores",
    "ranking_objective", "rating_objective", "rlhf_loss", "score", "score_cautiously",
    "score_completions", "score_margins", "score_members", "token_reward",
]
# fmt: on
