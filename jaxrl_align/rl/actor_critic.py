"""The one policy-gradient update: CartPole and RLHF run through the same lines.

It knows neither environments nor language models: an `Actor` makes trajectories and judges them again, and
this learner turns them into a gradient. PPO (Schulman et al. 2017, arXiv:1707.06347) is its first preset.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_align.learner import descend, linear_decay, make_optimizer, permutations
from jaxrl_align.losses import clipped_surrogate, clipped_value_loss, gae, masked_mean, whiten
from jaxrl_align.types import Actor, Evaluation, Learner, Metrics, Params, State, Trajectory


class PPOHParams(NamedTuple):
    """The traced scalars of PPO; give any field a leading axis and vmap to sweep it."""

    learning_rate: Any = 2.5e-4
    """Adam's rate; falls linearly to 0 where the learner is given `total_steps`."""
    gamma: Any = 0.99
    gae_lambda: Any = 0.95
    clip: Any = 0.2
    """The ratio earns nothing beyond [1 - clip, 1 + clip]."""
    value_clip: Any = 0.2
    """The new value earns nothing beyond this distance from the old one; infinity switches it off."""
    value_coef: Any = 0.5
    entropy_coef: Any = 0.01


class Batch(NamedTuple):
    """What an update epoch reads, each leaf [N, S, ...]: N segments of S steps."""

    trajectory: Trajectory
    advantage: chex.Array
    target: chex.Array
    behaviour: Any = None
    """The acting policy's distributions, where the learner was asked to keep them."""


def gae_advantages(trajectory: Trajectory) -> tuple[chex.Array, chex.Array]:
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


def check_divides(count: int, total: int, count_name: str, total_name: str) -> None:
    """Raise ValueError unless `count` divides `total`, naming divisors that would do."""
    if count < 1 or total % count:
        divisors = [d for d in range(1, total + 1) if total % d == 0]
        near = sorted(sorted(divisors, key=lambda d: (abs(d - count), d))[:2])
        options = " or ".join(str(d) for d in near)
        raise ValueError(
            f"{count_name} must divide {total_name}; got {total_name}={total}, {count_name}={count}; "
            f"try {count_name}={options}"
        )


def segments(trajectory: Any, length: int) -> Any:
    """Cut every leaf [B, T, ...] into [B * T / length, length, ...]; policies without memory use length 1."""
    return jax.tree.map(lambda x: x.reshape(-1, length, *x.shape[2:]), trajectory)


def ppo_loss(evaluation: Evaluation, batch: Batch, hparams: Any) -> tuple[chex.Array, Metrics]:
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


def mean_kl(evaluation: Evaluation, batch: Batch) -> chex.Array:
    """Return the mean of KL(acting policy || policy being trained) over the real steps [N, S], in nats."""
    return masked_mean(batch.behaviour.kl(evaluation.distribution), batch.trajectory.mask)


def make_actor_critic(
    actor: Actor,
    *,
    epochs: int = 4,
    minibatches: int = 4,
    segment_length: int | None = None,
    total_steps: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
    advantages: Callable[[Trajectory], tuple[chex.Array, chex.Array]] = gae_advantages,
    loss: Callable[[Evaluation, Batch, Any], tuple[chex.Array, Metrics]] = ppo_loss,
    measure_kl: bool = False,
    adapt: Callable[[Any, Metrics], Any] | None = None,
) -> Learner:
    """Build the learner: roll out, estimate advantages, then `epochs` passes over shuffled minibatches.

    Args:
      actor: the domain.
      epochs: passes over each rollout, every one with a fresh permutation.
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

    Returns:
      A `Learner`. Its metrics are the rollout's, the loss's averaged over the gradient steps, and `lr`.

    Raises:
      ValueError: at trace time, if `minibatches` or `segment_length` do not divide.
    """
    optimizer = optimizer or make_optimizer()

    def evaluate(params: Params, frozen: Any, batch: Batch) -> Evaluation:
        # A policy with memory runs through its trajectory, so there each step stays one of its own.
        if segment_length == 1 and not hasattr(batch.trajectory.obs, "memory"):
            # N single steps are judged as one trajectory: with an axis of length 1 between batch and features
            # XLA's CPU compiler transposes activations, which doubles the time of large minibatches.
            steps = jax.tree.map(lambda x: x[:, 0], batch.trajectory)
            return jax.tree.map(lambda x: x[:, None], actor.evaluate(params, frozen, steps))
        return jax.vmap(actor.evaluate, (None, None, 0))(params, frozen, batch.trajectory)

    def init(key: chex.PRNGKey, hparams: Any, params: Params | None = None, frozen: Any = None) -> State:
        key_params, key_env, key = jax.random.split(key, 3)
        params = actor.init_params(key_params) if params is None else params
        hparams = jax.tree.map(jnp.float32, hparams)
        env_state = actor.init_env(key_env, hparams)
        step = jnp.zeros((), jnp.int32)
        return State(params, optimizer.init(params), step, hparams, frozen, env_state, key)

    def minibatch_loss(params: Params, frozen: Any, batch: Batch, hparams: Any) -> tuple[chex.Array, Metrics]:
        return loss(evaluate(params, frozen, batch), batch, hparams)

    def update(state: State, batch: Batch, key: chex.PRNGKey) -> tuple[State, Metrics]:
        rows = batch.advantage.shape[0]
        unit = "trajectories" if segment_length is None else "segments"
        check_divides(minibatches, rows, "minibatches", f"{unit} per rollout")
        learning_rate = state.hparams.learning_rate * linear_decay(state.step, total_steps)

        def descend_once(carry, index):
            params, opt_state = carry
            minibatch = jax.tree.map(lambda x: x[index], batch)
            grads, metrics = jax.grad(minibatch_loss, has_aux=True)(
                params, state.frozen, minibatch, state.hparams
            )
            return descend(optimizer, grads, opt_state, params, learning_rate), metrics

        order = permutations(key, epochs, rows)
        (params, opt_state), metrics = jax.lax.scan(
            descend_once,
            (state.params, state.opt_state),
            order.reshape(epochs * minibatches, rows // minibatches),
        )
        metrics = jax.tree.map(jnp.mean, metrics) | {"lr": learning_rate}
        return state._replace(params=params, opt_state=opt_state), metrics

    def step(state: State, batch: Any = None) -> tuple[State, Metrics]:
        key, key_rollout, key_update = jax.random.split(state.key, 3)
        env_state, trajectory, rollout_metrics = actor.rollout(
            state.params, state.frozen, state.env_state, key_rollout, state.hparams, batch
        )
        data = Batch(trajectory, *advantages(trajectory))
        if segment_length is not None:
            check_divides(segment_length, trajectory.mask.shape[1], "segment_length", "steps per rollout")
            data = segments(data, segment_length)
        if measure_kl:
            data = data._replace(behaviour=evaluate(state.params, state.frozen, data).distribution)
        state, metrics = update(state, data, key_update)
        if measure_kl:
            metrics["policy/kl"] = mean_kl(evaluate(state.params, state.frozen, data), data)
        hparams = state.hparams if adapt is None else adapt(state.hparams, metrics)
        state = state._replace(step=state.step + 1, env_state=env_state, key=key, hparams=hparams)
        return state, rollout_metrics | metrics

    return Learner(init, step)
