"""The one policy-gradient update: CartPole and RLHF run through the same lines.

It imports neither environments nor language models: an `Actor` makes trajectories and evaluates them again,
and this learner turns them into a gradient. PPO (Schulman et al. 2017, arXiv:1707.06347) is its first preset.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_align.checks import check_counts, check_divides, refuse
from jaxrl_align.learner import begin, check_optimizer, epochs, linear_decay, make_optimizer
from jaxrl_align.losses import clipped_surrogate, clipped_value_loss, gae, masked_mean, whiten
from jaxrl_align.types import Actor, Evaluation, Learner, Metrics, Numeric, Params, State, Trajectory


class PPOHParams(NamedTuple):
    """The traced scalars of PPO; give any field a leading axis and vmap to sweep it."""

    learning_rate: Numeric = 2.5e-4
    """Adam's rate; falls linearly to 0 where the learner is given `total_steps`."""
    gamma: Numeric = 0.99
    gae_lambda: Numeric = 0.95
    clip: Numeric = 0.2
    """The ratio earns nothing beyond [1 - clip, 1 + clip]."""
    value_clip: Numeric = 0.2
    """The new value earns nothing beyond this distance from the old one; infinity switches it off."""
    value_coef: Numeric = 0.5
    entropy_coef: Numeric = 0.01


class Batch(NamedTuple):
    """The data of an update: N segments of S steps, each leaf [N, S, ...]."""

    trajectory: Trajectory
    advantage: jax.Array
    target: jax.Array
    behaviour: Any = None
    """The acting policy's distributions, where the learner was asked to keep them."""


Advantages = Callable[[Trajectory], tuple[jax.Array, jax.Array]]
"""`Trajectory[B, T] -> (advantage [B, T], the critic's target [B, T])`."""
Loss = Callable[[Evaluation, Batch, Any], tuple[jax.Array, Metrics]]
"""`(Evaluation[N, S], Batch[N, S], hparams) -> (scalar, metrics)`."""


def gae_advantages(trajectory: Trajectory) -> tuple[jax.Array, jax.Array]:
    """Return whitened generalised advantages and the value targets of a batch of trajectories.

    Args:
      trajectory: [B, T, ...].

    Returns:
      advantage: [B, T], mean 0 and variance 1 over the real steps of the batch.
      target: [B, T], the lambda return `advantage + value` before whitening.
    """
    advantage = jax.vmap(gae)(
        trajectory.reward,
        trajectory.discount,
        trajectory.lambda_,
        trajectory.value,
        trajectory.next_value,
    )
    return whiten(advantage, trajectory.mask) * trajectory.mask, advantage + trajectory.value


def segments(trajectory: Any, length: int) -> Any:
    """Cut every leaf [B, T, ...] into [B * T / length, length, ...]; policies without memory use length 1."""
    return jax.tree.map(lambda x: x.reshape(-1, length, *x.shape[2:]), trajectory)


def ppo_loss(evaluation: Evaluation, batch: Batch, hparams: Any) -> tuple[jax.Array, Metrics]:
    """Return the clipped-surrogate objective of one minibatch and its metrics, all masked means.

    `L = E[-min(r A, clip(r) A)] + c_v E[value loss] - c_e E[entropy]`, r the ratio of the new to the acting
    policy (Schulman et al. 2017, equation 9).

    Args:
      evaluation: [N, S] under the parameters being trained.
      batch: [N, S] what was done and how good it was.
      hparams: anything with `clip, value_clip, value_coef, entropy_coef`.
    """
    trajectory = batch.trajectory
    mask = trajectory.mask
    log_ratio = (evaluation.log_prob - trajectory.log_prob) * mask
    ratio = jnp.exp(log_ratio)
    policy = clipped_surrogate(evaluation.log_prob, trajectory.log_prob, batch.advantage, clip=hparams.clip)
    value = clipped_value_loss(evaluation.value, trajectory.value, batch.target, clip=hparams.value_clip)
    mean_ratio = masked_mean(ratio, mask)
    value_moved = jnp.abs(evaluation.value - trajectory.value) > hparams.value_clip
    metrics = {
        "loss/policy_avg": masked_mean(policy, mask),
        "loss/value_avg": masked_mean(value, mask),
        "policy/entropy_avg": masked_mean(evaluation.entropy, mask),
        # Not ratio - 1, whose rounding (6e-8) hides a small divergence and makes it negative.
        "policy/approxkl_avg": masked_mean(jnp.expm1(log_ratio) - log_ratio, mask),
        "policy/clipfrac_avg": masked_mean((jnp.abs(ratio - 1.0) > hparams.clip).astype(mask.dtype), mask),
        "val/clipfrac_avg": masked_mean(value_moved.astype(mask.dtype), mask),
        "val/ratio": mean_ratio,
        "val/ratio_var": masked_mean((ratio - mean_ratio) ** 2, mask),
    }
    loss = (
        metrics["loss/policy_avg"]
        + hparams.value_coef * metrics["loss/value_avg"]
        - hparams.entropy_coef * metrics["policy/entropy_avg"]
    )
    return loss, metrics


def mean_kl(evaluation: Evaluation, batch: Batch) -> jax.Array:
    """Return the mean of KL(acting policy || policy being trained) over the real steps [N, S], in nats."""
    return masked_mean(batch.behaviour.kl(evaluation.distribution), batch.trajectory.mask)


def explained_variance(batch: Batch) -> jax.Array:
    """Return how much of its target's variance the critic explained before the update.

        1 - Var(target - value) / Var(target)

    Args:
      batch: [N, S]; padding does not count.

    Returns:
      [] at most 1; 0 for a constant value or where the target is constant, negative for a value that is worse
      than none. A target that bootstraps, such as the lambda return, holds values itself and flatters the
      critic.
    """
    trajectory, mask = batch.trajectory, batch.trajectory.mask
    variance = lambda x: masked_mean(jnp.square(x - masked_mean(x, mask)), mask)
    whole, left = variance(batch.target), variance(batch.target - trajectory.value)
    return jnp.where(whole > 0, 1.0 - left / jnp.where(whole > 0, whole, 1.0), 0.0)


class ActorCritic(NamedTuple):
    """The parts of one actor-critic learner; `make_actor_critic` says what each is."""

    actor: Actor
    epochs: int
    minibatches: int
    segment_length: int | None
    total_steps: int | None
    optimizer: optax.GradientTransformation
    advantages: Advantages
    loss: Loss
    measure_kl: bool
    adapt: Callable[[Any, Metrics], Any] | None
    target_kl: Numeric | None


def make_actor_critic(
    actor: Actor,
    *,
    epochs: int = 4,
    minibatches: int = 4,
    segment_length: int | None = None,
    total_steps: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
    advantages: Advantages = gae_advantages,
    loss: Loss = ppo_loss,
    measure_kl: bool = False,
    adapt: Callable[[Any, Metrics], Any] | None = None,
    target_kl: Numeric | None = None,
) -> Learner:
    """Build the learner that rolls out, estimates advantages and takes epochs of minibatch steps.

    PPO is its first preset; REINFORCE, A2C, PPO-KL and the lectures' Q actor-critic are others, and differ in
    `advantages`, `loss` and the number of epochs alone.

    Args:
      actor: the domain; it must evaluate trajectories.
      epochs: passes over each rollout, each in a fresh order.
      minibatches: gradient steps per pass; must divide the number of segments.
      segment_length: trajectories are cut into pieces of this many steps before shuffling; None keeps them
        whole (language models), 1 shuffles single steps (policies without memory).
      total_steps: the learning rate falls linearly to 0 over this many learner steps; None keeps it constant.
      optimizer: an update rule without its learning rate; default `make_optimizer()`.
      advantages: `Trajectory[B, T] -> (advantage, target)`.
      loss: `(Evaluation[N, S], Batch[N, S], hparams) -> (scalar, metrics)`.
      measure_kl: keep the acting policy's distributions in `Batch.behaviour`, and report as `policy/kl` how
        far the whole update moved the policy: mean KL(before || after), exact. Two more forward passes.
      adapt: `(hparams, metrics) -> hparams`, applied after every update, for controllers.
      target_kl: an update ends at the first minibatch whose `policy/approxkl_avg` is above 1.5 times this,
        nats, without a step on it (as stable-baselines3 does); None takes every step. The steps taken are
        reported as `gradient_steps`.

    Returns:
      A `Learner`. Its metrics are the rollout's, `val/explained_variance`, the loss's averaged over the
      gradient steps, and `learning_rate`.

    Raises:
      ValueError: if the actor cannot evaluate trajectories, or target_kl is not above 0; at trace time, if
        `minibatches` or `segment_length` do not divide.
    """
    if actor.evaluate is None:
        raise ValueError(
            "an actor-critic needs an actor that evaluates trajectories; got one of action values: take "
            "actors.gym.make_actor, or rl.make_dqn"
        )
    check_counts(epochs=epochs)
    if target_kl is not None and not isinstance(target_kl, jax.core.Tracer) and not np.all(target_kl > 0):
        raise ValueError(f"target_kl must be above 0; got {target_kl}; None ends no update early")
    optimizer = make_optimizer() if optimizer is None else check_optimizer(optimizer)
    settings = ActorCritic(
        actor,
        epochs,
        minibatches,
        segment_length,
        total_steps,
        optimizer,
        advantages,
        loss,
        measure_kl,
        adapt,
        target_kl,
    )
    init = functools.partial(begin, actor.init_params, optimizer.init, actor.init_env)
    return Learner(init, functools.partial(step_actor_critic, settings))


def step_actor_critic(
    settings: ActorCritic, state: State, batch: Any = None, frozen: Any = None
) -> tuple[State, Metrics]:
    """Roll out, estimate advantages, and update; pure."""
    key, key_rollout, key_update = jax.random.split(state.key, 3)
    env_state, trajectory, rollout_metrics = roll_out(settings.actor, state, key_rollout, batch, frozen)
    data = Batch(trajectory, *settings.advantages(trajectory))
    rollout_metrics = rollout_metrics | {"val/explained_variance": explained_variance(data)}
    if settings.segment_length is not None:
        check_divides(
            settings.segment_length, trajectory.mask.shape[1], "segment_length", "steps per rollout"
        )
        data = segments(data, settings.segment_length)
    if settings.measure_kl:
        behaviour = evaluate_segments(settings, state.params, frozen, data).distribution
        data = data._replace(behaviour=behaviour)
    state, metrics = update_policy(settings, state, data, key_update, frozen)
    if settings.measure_kl:
        metrics["policy/kl"] = mean_kl(evaluate_segments(settings, state.params, frozen, data), data)
    hparams = state.hparams if settings.adapt is None else settings.adapt(state.hparams, metrics)
    state = state._replace(
        step=optax.safe_increment(state.step), env_state=env_state, key=key, hparams=hparams
    )
    return state, rollout_metrics | metrics


def roll_out(
    actor: Actor, state: State, key: chex.PRNGKey, batch: Any, frozen: Any
) -> tuple[Any, Trajectory, Metrics]:
    """Return the actor's next `(env_state, Trajectory[B, T], metrics)`."""
    if not actor.takes_batch:
        refuse(batch=batch)
    return actor.rollout(state.params, frozen, state.env_state, key, state.hparams, batch)


def evaluate_segments(settings: ActorCritic, params: Params, frozen: Any, batch: Batch) -> Evaluation:
    """Evaluate segments [N, S] under given parameters."""
    actor = settings.actor
    if actor.stepwise:
        # All steps are judged as one trajectory: a net that reads rows at once sums its gradient over them in
        # one product, and an axis between batch and features makes XLA's CPU compiler transpose activations.
        lead = batch.trajectory.mask.shape
        steps = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch.trajectory)
        return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), actor.evaluate(params, frozen, steps))
    return jax.vmap(actor.evaluate, (None, None, 0))(params, frozen, batch.trajectory)


def update_policy(
    settings: ActorCritic, state: State, data: Batch, key: chex.PRNGKey, frozen: Any
) -> tuple[State, Metrics]:
    """Take the epochs of minibatch steps on segments [N, S]."""
    unit = "trajectories" if settings.segment_length is None else "segments"
    check_divides(settings.minibatches, data.advantage.shape[0], "minibatches", f"{unit} per rollout")
    learning_rate = state.hparams.learning_rate * linear_decay(state.step, settings.total_steps)

    def loss(params: Params, minibatch: Batch) -> tuple[jax.Array, Metrics]:
        evaluation = evaluate_segments(settings, params, frozen, minibatch)
        return settings.loss(evaluation, minibatch, state.hparams)

    def over_target(metrics: Metrics) -> jax.Array:
        assert settings.target_kl is not None
        if "policy/approxkl_avg" not in metrics:
            raise ValueError(
                f"target_kl needs a loss that reports policy/approxkl_avg, as ppo_loss does; got one of "
                f"{', '.join(metrics)}; leave it out"
            )
        return metrics["policy/approxkl_avg"] > 1.5 * settings.target_kl

    state, metrics = epochs(
        loss,
        settings.optimizer,
        state,
        data,
        key,
        num_epochs=settings.epochs,
        minibatches=settings.minibatches,
        learning_rate=learning_rate,
        stop=None if settings.target_kl is None else over_target,
    )
    return state, metrics | {"learning_rate": learning_rate}
