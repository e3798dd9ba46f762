"""Policy gradients as short presets of the shared update: REINFORCE, Q and advantage actor-critic, PPO-KL.

PPO with its clip is the shared update's default, in `rl/actor_critic.py`.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_align.losses import (
    adapt_kl_coefficient,
    average_baseline,
    discounted_returns,
    gae,
    kl_penalty_surrogate,
    masked_mean,
    reinforce_loss,
    reward_to_go,
    squared,
    trajectory_return,
)
from jaxrl_align.rl.actor_critic import Batch, make_actor_critic
from jaxrl_align.types import Actor, Evaluation, Learner, Metrics, Numeric, Trajectory

Returns = Literal["whole", "to_go", "discounted"]
Baseline = Literal["none", "constant", "average", "learned"]


class PolicyGradientHParams(NamedTuple):
    """The traced scalars of REINFORCE and the actor-critics."""

    learning_rate: Numeric = 1e-3
    gamma: Numeric = 0.99
    gae_lambda: Numeric = 0.95
    """Read by A2C; 1 is Monte Carlo minus the baseline, 0 the one-step TD error."""
    value_coef: Numeric = 0.5
    entropy_coef: Numeric = 0.0


class PPOKLHParams(NamedTuple):
    """The traced scalars of PPO with a KL penalty; `kl_coef` is where an adaptive coefficient starts."""

    learning_rate: Numeric = 2.5e-4
    gamma: Numeric = 0.99
    gae_lambda: Numeric = 0.95
    kl_coef: Numeric = 1.0
    """beta, weight of KL(acting policy || policy)."""
    kl_target: Numeric = 0.01
    """Nats, of one update; read by the adaptive coefficient."""
    value_coef: Numeric = 0.5
    entropy_coef: Numeric = 0.01


def monte_carlo(
    trajectory: Trajectory, *, returns: Returns, baseline: Baseline, constant: float
) -> tuple[jax.Array, jax.Array]:
    """Return what weighs each log-probability in REINFORCE, `G_t - b_t`, and the critic's target.

    Args:
      trajectory: [B, T, ...] of whole episodes.
      returns: "whole", the undiscounted return of the whole episode at every step; "to_go", of what follows
        the action, undiscounted; "discounted", the same discounted by gamma.
      baseline: "none"; "constant"; "average", that of the other episodes at the same step; "learned", the
        critic's value.
      constant: the constant baseline.

    Returns:
      weight [B, T], 0 on padding, and target [B, T].

    Source: docs/lectures.md (B4, B7 to B10).
    """
    if returns == "discounted":
        ret = jax.vmap(discounted_returns)(trajectory.reward, trajectory.discount)
    elif returns == "to_go":
        ret = jax.vmap(reward_to_go)(trajectory.reward)
    else:
        whole = jax.vmap(trajectory_return)(trajectory.reward, jnp.ones_like(trajectory.reward))
        ret = jnp.broadcast_to(whole[:, None], trajectory.reward.shape)
    if baseline == "average":
        level = average_baseline(ret)
    else:
        levels: dict[str, Any] = {"none": 0.0, "constant": constant, "learned": trajectory.value}
        level = levels[baseline]
    return (ret - level) * trajectory.mask, ret * trajectory.mask


def gae_unwhitened(trajectory: Trajectory) -> tuple[jax.Array, jax.Array]:
    """Return generalised advantages [B, T] as they are, and the lambda returns."""
    fields = (trajectory.reward, trajectory.discount, trajectory.lambda_)
    advantage = jax.vmap(gae)(*fields, trajectory.value, trajectory.next_value)
    return advantage, advantage + trajectory.value


def q_values(trajectory: Trajectory) -> tuple[jax.Array, jax.Array]:
    """Return the critic's Q(s, a) [B, T] and its target `r + gamma Q(s', a')` (docs/lectures.md, B11)."""
    return trajectory.value, trajectory.reward + trajectory.discount * trajectory.next_value


def policy_gradient_loss(
    evaluation: Evaluation, batch: Batch, hparams: Any, *, critic: bool = True
) -> tuple[jax.Array, Metrics]:
    """Return the score-function objective of one batch and its metrics.

    `L = E[-log pi(a|s) A] + c_v E[(target - V)^2] / 2 - c_e E[H]`, each the sum over the real steps divided
    by all N S places, so that a long episode weighs by its length, as in the lectures' sum over time.

    Args:
      evaluation: [N, S] under the parameters being trained.
      batch: [N, S].
      hparams: anything with `value_coef, entropy_coef`.
      critic: whether the value is trained.
    """
    mask = batch.trajectory.mask
    mean = lambda x: jnp.mean(x * mask)
    metrics = {
        "loss/policy_avg": mean(reinforce_loss(evaluation.log_prob, batch.advantage)),
        "loss/value_avg": mean(squared(batch.target - evaluation.value)),
        "policy/entropy_avg": masked_mean(evaluation.entropy, mask),
    }
    loss = metrics["loss/policy_avg"] - hparams.entropy_coef * mean(evaluation.entropy)
    return loss + (hparams.value_coef * metrics["loss/value_avg"] if critic else 0.0), metrics


def ppo_kl_loss(evaluation: Evaluation, batch: Batch, hparams: Any) -> tuple[jax.Array, Metrics]:
    """Return PPO's KL-penalised objective of one minibatch and its metrics, all masked means.

    `L = E[-r A + beta KL(pi_old || pi)] + c_v E[value loss] - c_e E[entropy]` (Schulman et al. 2017,
    equation 8; docs/lectures.md, B20), with the exact KL.

    Args:
      evaluation: [N, S] under the parameters being trained.
      batch: [N, S] with `behaviour`.
      hparams: anything with `kl_coef, value_coef, entropy_coef`.
    """
    trajectory, mask = batch.trajectory, batch.trajectory.mask
    kl = batch.behaviour.kl(evaluation.distribution)
    policy = kl_penalty_surrogate(
        evaluation.log_prob, trajectory.log_prob, batch.advantage, kl, kl_coef=hparams.kl_coef
    )
    metrics = {
        "loss/policy_avg": masked_mean(policy, mask),
        "loss/value_avg": masked_mean(squared(batch.target - evaluation.value), mask),
        "policy/entropy_avg": masked_mean(evaluation.entropy, mask),
        "policy/kl_coef": jnp.asarray(hparams.kl_coef, jnp.float32),
    }
    loss = metrics["loss/policy_avg"] + hparams.value_coef * metrics["loss/value_avg"]
    return loss - hparams.entropy_coef * metrics["policy/entropy_avg"], metrics


def make_reinforce(
    actor: Actor,
    *,
    returns: Returns = "discounted",
    baseline: Baseline = "none",
    constant: float = 0.0,
    **settings: Any,
) -> Learner:
    """Build REINFORCE: one gradient step a rollout of whole episodes (Williams 1992).

    Args:
      actor: of whole episodes, for example `gym.make_actor(..., whole_episodes=True)`.
      returns: what is credited to an action; see `monte_carlo`.
      baseline: what is subtracted; see `monte_carlo`.
      constant: the constant baseline.
      **settings: of `make_actor_critic`: `total_steps`, `optimizer`, `measure_kl`.

    Returns:
      A `Learner` for `PolicyGradientHParams`; the critic is trained only if it is the baseline.

    Raises:
      ValueError: for an unknown return or baseline.
    """
    if returns not in ("whole", "to_go", "discounted"):
        raise ValueError(f"returns must be whole, to_go or discounted; got {returns!r}")
    if baseline not in ("none", "constant", "average", "learned"):
        raise ValueError(f"baseline must be none, constant, average or learned; got {baseline!r}")
    advantages = functools.partial(monte_carlo, returns=returns, baseline=baseline, constant=constant)
    loss = functools.partial(policy_gradient_loss, critic=baseline == "learned")
    return make_actor_critic(actor, epochs=1, minibatches=1, advantages=advantages, loss=loss, **settings)


def make_q_actor_critic(actor: Actor, **settings: Any) -> Learner:
    """Build the lectures' Q actor-critic: the actor follows Q(s, a), the critic the next action's value.

    Args:
      actor: with a critic of actions, for example `gym.make_actor(..., critic="sarsa")`, whose Q converges to
        the policy's; with "max" it is the lectures' printed target, which learns the optimal Q (erratum H5).
      **settings: of `make_actor_critic`: `total_steps`, `optimizer`, `measure_kl`.

    Returns:
      A `Learner` for `PolicyGradientHParams`.

    Source: docs/lectures.md (B11).
    """
    return make_actor_critic(
        actor, epochs=1, minibatches=1, advantages=q_values, loss=policy_gradient_loss, **settings
    )


def make_a2c(actor: Actor, **settings: Any) -> Learner:
    """Build advantage actor-critic: one gradient step a rollout along generalised advantages.

    Args:
      actor: with a critic of states.
      **settings: of `make_actor_critic`: `total_steps`, `optimizer`, `measure_kl`.

    Returns:
      A `Learner` for `PolicyGradientHParams`.

    Source: Mnih et al. 2016; docs/lectures.md (B12, B14).
    """
    return make_actor_critic(
        actor, epochs=1, minibatches=1, advantages=gae_unwhitened, loss=policy_gradient_loss, **settings
    )


def make_ppo_kl(actor: Actor, *, adaptive: bool = True, **settings: Any) -> Learner:
    """Build PPO with a KL penalty instead of the clip.

    Args:
      actor: whose `evaluate` returns distributions.
      adaptive: double `kl_coef` after an update of more than 1.5 `kl_target` nats and halve it after one of
        less than `kl_target / 1.5`; else it stays.
      **settings: of `make_actor_critic`: `epochs`, `minibatches`, `segment_length`, `total_steps`,
        `optimizer`.

    Returns:
      A `Learner` for `PPOKLHParams`; `policy/kl` is the whole update's KL, `policy/kl_coef` its coefficient.

    Source: Schulman et al. 2017, section 4; docs/lectures.md (B20).
    """

    def adapt(hparams: PPOKLHParams, metrics: Metrics) -> PPOKLHParams:
        coef = adapt_kl_coefficient(hparams.kl_coef, metrics["policy/kl"], target=hparams.kl_target)
        return hparams._replace(kl_coef=coef.astype(jnp.float32))  # as `begin` keeps it

    return make_actor_critic(
        actor, loss=ppo_kl_loss, measure_kl=True, adapt=adapt if adaptive else None, **settings
    )
