"""Objective functions for one example, unreduced; the caller vmaps and masks."""

from jaxrl_align.losses.direct import dpo, ipo, kto, log_odds_ratio, orpo, simpo, slic
from jaxrl_align.losses.distributional import (
    categorical_projection,
    categorical_q_loss,
    quantile_regression_loss,
)
from jaxrl_align.losses.distributions import Categorical, DiagonalGaussian, MultiCategorical, TanhGaussian
from jaxrl_align.losses.divergences import (
    best_of_n_kl,
    categorical_kl,
    entropy,
    gaussian_entropy,
    gaussian_kl,
    kl_estimate,
)
from jaxrl_align.losses.groups import dr_grpo, group_advantages, grpo, gspo, leave_one_out_advantages, rloo
from jaxrl_align.losses.masking import masked_mean, whiten
from jaxrl_align.losses.off_policy import VTrace, vtrace
from jaxrl_align.losses.policies import (
    adapt_kl_coefficient,
    average_baseline,
    clipped_surrogate,
    importance_ratio,
    kl_penalty_surrogate,
    proportional_kl_coefficient,
    q_advantage,
    reinforce_loss,
    surrogate,
)
from jaxrl_align.losses.preferences import (
    all_pairs,
    binary_label,
    bradley_terry,
    plackett_luce,
    reward_centring,
    score_regression,
)
from jaxrl_align.losses.reconstruction import gaussian_noise, masking_noise, reconstruction_error
from jaxrl_align.losses.returns import (
    discounted_returns,
    gae,
    gae_associative,
    lambda_error,
    lambda_returns,
    n_step_error,
    n_step_returns,
    reward_to_go,
    trajectory_return,
)
from jaxrl_align.losses.tokens import next_token_loss, token_log_prob, token_log_prob_chunked
from jaxrl_align.losses.updates import (
    drift_stabilised_loss,
    exploration_stabilised_loss,
    variance_stabilised_loss,
)
from jaxrl_align.losses.values import (
    clipped_value_loss,
    double_q_error,
    expected_sarsa_error,
    huber,
    q_learning_error,
    sarsa_error,
    squared,
    td_error,
    td_target,
)

# fmt: off
__all__ = [
    "Categorical", "DiagonalGaussian", "MultiCategorical", "TanhGaussian", "VTrace",
    "adapt_kl_coefficient", "all_pairs", "average_baseline", "best_of_n_kl", "binary_label",
    "bradley_terry", "categorical_kl", "categorical_projection", "categorical_q_loss",
    "clipped_surrogate", "clipped_value_loss", "discounted_returns", "double_q_error", "dpo",
    "dr_grpo", "drift_stabilised_loss", "entropy", "expected_sarsa_error",
    "exploration_stabilised_loss", "gae", "gae_associative", "gaussian_entropy", "gaussian_kl",
    "gaussian_noise", "group_advantages", "grpo", "gspo", "huber", "importance_ratio", "ipo",
    "kl_estimate", "kl_penalty_surrogate", "kto", "lambda_error", "lambda_returns",
    "leave_one_out_advantages", "log_odds_ratio", "masked_mean", "masking_noise", "n_step_error",
    "n_step_returns", "next_token_loss", "orpo", "plackett_luce", "proportional_kl_coefficient",
    "q_advantage", "q_learning_error", "quantile_regression_loss", "reconstruction_error",
    "reinforce_loss", "reward_centring", "reward_to_go", "rloo", "sarsa_error", "score_regression",
    "simpo", "slic", "squared", "surrogate", "td_error", "td_target", "token_log_prob",
    "token_log_prob_chunked", "trajectory_return", "variance_stabilised_loss", "vtrace", "whiten",
]
# fmt: on
