"""Reinforcement learners, which know neither environments nor language models."""

from jaxrl_align.rl.actor_critic import Batch, PPOHParams, gae_advantages, make_actor_critic, ppo_loss
from jaxrl_align.rl.dqn import (
    DQNHParams,
    Exploration,
    c51_loss,
    check_rewards,
    make_dqn,
    make_online_q,
    memory_bytes,
    quantile_loss,
    td_loss,
    transition_loss,
)
from jaxrl_align.rl.dynamic_programming import (
    QLearningHParams,
    Solution,
    action_values,
    make_q_learning,
    policy_evaluation,
    policy_iteration,
    solve_policy,
    value_iteration,
)
from jaxrl_align.rl.expert_iteration import SearchHParams, make_search_learner
from jaxrl_align.rl.policy_gradients import (
    PolicyGradientHParams,
    PPOKLHParams,
    gae_unwhitened,
    make_a2c,
    make_ppo_kl,
    make_q_actor_critic,
    make_reinforce,
    monte_carlo,
    policy_gradient_loss,
    ppo_kl_loss,
    q_values,
)
from jaxrl_align.rl.replay import Replay, ReplayState, Sample, make_replay, replay_bytes
from jaxrl_align.rl.tree_search import Leaf, Plan, search
from jaxrl_align.rl.trpo import (
    TRPOHParams,
    conjugate_gradient,
    fisher_vector_product,
    make_trpo,
    trust_region_step,
)

# fmt: off
__all__ = [
    "Batch", "DQNHParams", "Exploration", "Leaf", "PPOHParams", "PPOKLHParams", "Plan",
    "PolicyGradientHParams", "QLearningHParams", "Replay", "ReplayState", "Sample", "SearchHParams",
    "Solution", "TRPOHParams", "action_values", "c51_loss", "check_rewards", "conjugate_gradient",
    "fisher_vector_product", "gae_advantages", "gae_unwhitened", "make_a2c", "make_actor_critic",
    "make_dqn", "make_online_q", "make_ppo_kl", "make_q_actor_critic", "make_q_learning",
    "make_reinforce", "make_replay", "make_search_learner", "make_trpo", "memory_bytes", "monte_carlo",
    "policy_evaluation", "policy_gradient_loss", "policy_iteration", "ppo_kl_loss", "ppo_loss",
    "q_values", "quantile_loss", "replay_bytes", "search", "solve_policy", "td_loss", "transition_loss",
    "trust_region_step", "value_iteration",
]
# fmt: on
