"""Alignment: reward models from human feedback, rewards composed of parts, and RLHF."""

from jaxrl_align.align.best_of_n import REJECTION_SAMPLING, Best, best_of_n, expected_best
from jaxrl_align.align.direct_learner import (
    DirectHParams,
    PairLogProbs,
    PairLosses,
    answer_log_probs,
    dpo_objective,
    ipo_objective,
    kto_objective,
    make_direct_learner,
    orpo_objective,
    pair_objective,
    simpo_objective,
    slic_objective,
)
from jaxrl_align.align.four_updates import (
    DRIFT,
    EXPLORATION,
    VANILLA,
    VARIANCE,
    UpdateHParams,
    make_update_learner,
)
from jaxrl_align.align.group_learner import (
    DR_GRPO,
    GRPO,
    GSPO,
    REINFORCE_PLUS_PLUS,
    RLOO,
    GroupHParams,
    GroupMethod,
    by_answer,
    group_loss,
    make_group_learner,
    whitened_returns,
)
from jaxrl_align.align.host_rewards import host_reward
from jaxrl_align.align.reference import Referenced, check_answers, with_reference
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
from jaxrl_align.align.rounds import RoundsHParams, make_rounds_learner

# fmt: off
__all__ = [
    "Best", "DRIFT", "DR_GRPO", "DirectHParams", "EXPLORATION", "GRPO", "GSPO", "GroupHParams",
    "GroupMethod", "PairLogProbs", "PairLosses", "REINFORCE_PLUS_PLUS", "REJECTION_SAMPLING",
    "RLHFHParams", "RLOO", "Referenced", "RewardHParams", "RewardModel", "RoundsHParams", "UpdateHParams",
    "VANILLA", "VARIANCE", "answer_log_probs", "best_of_n", "by_answer", "check_answers",
    "choose_completions", "combine_rewards", "comparison_objective", "dpo_objective", "expected_best",
    "group_loss", "host_reward", "init_policy", "init_reward_params", "ipo_objective", "kto_objective",
    "label_objective", "likelihood_reward", "make_direct_learner", "make_group_learner",
    "make_reward_learner", "make_rlhf_learner", "make_rounds_learner", "make_update_learner",
    "model_reward", "normalise_scores", "orpo_objective", "pair_objective", "ranking_objective",
    "rating_objective", "rlhf_loss", "score", "score_cautiously", "score_completions", "score_margins",
    "score_members", "simpo_objective", "slic_objective", "token_reward", "whitened_returns",
    "with_reference",
]
# fmt: on
