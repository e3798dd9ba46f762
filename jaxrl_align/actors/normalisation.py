"""Observations and rewards brought to unit scale by statistics that are part of the actor's state.

The moments are part of the state, `GymState.normaliser`, so a checkpoint holds them, a run resumes bit for
bit, and vmapped members keep their own. A rollout reads them as they were at its start and merges its own
observations at its end, so that every step of a trajectory is judged as it was acted on; at evaluation they
are only read (`normalised`).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_align.envs.rollout import GymState, Policy, Steps
from jaxrl_align.types import Numeric

LIMIT = 10.0
"""Standardised observations and scaled rewards are clipped to [-10, 10]."""

_TINY = 1e-8


class Moments(NamedTuple):
    """Running mean and variance of arrays of one shape, or of every array of a tree; float32."""

    count: jax.Array  # type: ignore[assignment]
    """[] how many were seen; float32, which no longer grows once a batch is less than 2^-24 of it."""
    mean: Any
    """[...] 0 before the first."""
    variance: Any
    """[...] of the population (divided by n), 1 before the first."""


class Normaliser(NamedTuple):
    """Running statistics of observations and returns; None for what is not normalised."""

    obs: Moments | None
    reward: Moments | None
    """Moments [] of the discounted return so far, whose deviation is the rewards' scale."""
    running_return: jax.Array | None
    """[B] discounted sum of the rewards of each environment's running episode."""


def start_normaliser(obs: Any, *, of_obs: bool, of_reward: bool) -> Normaliser | None:
    """Return a normaliser that has seen nothing and changes nothing, or None if neither is asked for.

    Args:
      obs: [B, ...] observations of the B environments, read for their shapes.
      of_obs: standardise observations.
      of_reward: scale rewards.
    """
    if not of_obs and not of_reward:
        return None

    def fresh(rows: Any) -> Moments:
        mean = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], jnp.float32), rows)
        return Moments(jnp.zeros((), jnp.float32), mean, jax.tree.map(jnp.ones_like, mean))

    returns = jnp.zeros(jax.tree.leaves(obs)[0].shape[0], jnp.float32)
    return Normaliser(
        fresh(obs) if of_obs else None,
        fresh(returns) if of_reward else None,
        returns if of_reward else None,
    )


def merge_moments(moments: Moments, x: Any) -> Moments:
    """Return the moments of everything seen so far and of a batch.

        mean' = mean + w d,   var' = (1 - w) var + w var_x + w (1 - w) d^2,
        d = mean_x - mean,   w = n_x / (n + n_x)

    Averages, not sums, are kept: a sum of squares would outgrow float32.

    Args:
      moments: of arrays [...].
      x: [N, ...] the batch; each array of a tree has its own moments.

    Source: Chan, Golub & LeVeque 1979.
    """
    rows = jax.tree.leaves(x)[0].shape[0]
    total = moments.count + rows
    weight = rows / total

    def merge(mean: jax.Array, variance: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x.astype(jnp.float32)
        apart = jnp.mean(x, axis=0) - mean
        merged = (1.0 - weight) * variance + weight * jnp.var(x, axis=0)
        return mean + weight * apart, merged + weight * (1.0 - weight) * jnp.square(apart)

    both = jax.tree.map(merge, moments.mean, moments.variance, x)
    return Moments(total, *jax.tree.transpose(jax.tree.structure(x), jax.tree.structure((0, 0)), both))


def standardise(moments: Moments, x: Any) -> Any:
    """Return `(x - mean) / std` of an array [...] of the moments' shape, or tree, clipped to [-10, 10]."""

    def one(mean: jax.Array, variance: jax.Array, x: jax.Array) -> jax.Array:
        scaled = (x.astype(jnp.float32) - mean) * jax.lax.rsqrt(variance + _TINY)
        return jnp.clip(scaled, -LIMIT, LIMIT)

    return jax.tree.map(one, moments.mean, moments.variance, x)


def normalised_obs(normaliser: Normaliser | None, obs: Any) -> Any:
    """Return an observation [...] as the policy sees it; the statistics are read, never moved."""
    return obs if normaliser is None or normaliser.obs is None else standardise(normaliser.obs, obs)


def normalised(policy: Policy, normaliser: Normaliser | None) -> Policy:
    """Return the policy that sees standardised observations.

    `envs.evaluate_policy(env, normalised(gym.greedy(net, params), state.env_state.normaliser), ...)` plays a
    trained policy.
    """
    return lambda key, obs: policy(key, normalised_obs(normaliser, obs))


def normalise_rollout(env_state: GymState, steps: Steps, gamma: Numeric) -> tuple[GymState, Steps]:
    """Apply `normalise_steps` with the normaliser that the actor's state carries, if it carries one."""
    if env_state.normaliser is None:
        return env_state, steps
    normaliser, steps = normalise_steps(env_state.normaliser, steps, gamma)
    return env_state._replace(normaliser=normaliser), steps


def normalise_steps(normaliser: Normaliser, steps: Steps, gamma: Numeric) -> tuple[Normaliser, Steps]:
    """Bring what was seen and earned to unit scale, and learn from it.

    Observations are standardised by the moments before the rollout, on which the policy acted. Rewards, which
    nobody acts on, are divided by the deviation of `G_t = r_t + gamma G_{t-1}`, G starting anew with each
    episode, over all steps up to and including these (Engstrom et al. 2020); they are not centred.

    Args:
      normaliser: as it was when the steps were made.
      steps: [B, T] as the environments gave them; episode statistics stay in the environments' unit.
      gamma: [].

    Returns:
      The normaliser for the next rollout, and the steps.
    """
    obs, reward, running = normaliser
    if obs is not None:
        over_steps = jax.vmap(jax.vmap(functools.partial(standardise, obs)))
        seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps.obs)
        steps = steps._replace(obs=over_steps(steps.obs), final_obs=over_steps(steps.final_obs))
        obs = merge_moments(obs, seen)
    if reward is not None and running is not None:
        running, discounted = _running_returns(running, steps, gamma)
        reward = merge_moments(reward, discounted.ravel())
        scaled = steps.reward * jax.lax.rsqrt(reward.variance + _TINY)
        steps = steps._replace(reward=jnp.clip(scaled, -LIMIT, LIMIT))
    return Normaliser(obs, reward, running), steps


def _running_returns(running: jax.Array, steps: Steps, gamma: Numeric) -> tuple[jax.Array, jax.Array]:
    def accumulate(running: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reward, first = step
        total = reward + gamma * jnp.where(first, 0.0, running)
        return total, total

    over_time = (steps.reward.T, (steps.episode_length == 1).T)
    return jax.lax.scan(accumulate, running, over_time)
