"""Objective functions for one example, unreduced; the caller vmaps and masks."""

from jaxrl_align.losses.divergences import categorical_kl, entropy, kl_estimate
from jaxrl_align.losses.likelihood import next_token_loss, reconstruction_error, token_log_prob
from jaxrl_align.losses.masking import masked_mean, whiten
from jaxrl_align.losses.policies import (
    actor_critic_loss,
    clipped_surrogate,
    importance_ratio,
    reinforce_loss,
    surrogate,
)
from jaxrl_align.losses.preferences import bradley_terry, dpo
from jaxrl_align.losses.returns import discounted_returns, gae, reward_to_go
from jaxrl_align.losses.values import clipped_value_loss, huber, q_learning_error, td_target

__all__ = [
    "actor_critic_loss",
    "bradley_terry",
    "categorical_kl",
    "clipped_surrogate",
    "clipped_value_loss",
    "discounted_returns",
    "dpo",
    "entropy",
    "gae",
    "huber",
    "importance_ratio",
    "kl_estimate",
    "masked_mean",
    "next_token_loss",
    "q_learning_error",
    "reconstruction_error",
    "reinforce_loss",
    "reward_to_go",
    "surrogate",
    "td_target",
    "token_log_prob",
    "whiten",
]
