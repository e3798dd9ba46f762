"""Observations and rewards brought to unit scale by statistics that are part of the actor's state.

The moments are part of the state, `GymState.normaliser`, so a checkpoint holds them, a run resumes bit for
bit, and vmapped members keep their own. A rollout reads them as they were at its start and merges its own
observations at its end, so that every step of a trajectory is judged as it was acted on; at evaluation they
are only read (`normalised`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_align.envs.rollout import GymState, Policy, Steps
from jaxrl_align.types import Numeric

LIMIT = 10.0
"""Standardised observations and scaled rewards are clipped to [-10, 10]."""

_TINY = 1e-8


class Moments(NamedTuple):
    """Running mean and variance of arrays of one shape; float32."""

    count: jax.Array  # type: ignore[assignment]
    """[] how many were seen."""
    mean: jax.Array
    """[...] 0 before the first."""
    variance: jax.Array
    """[...] of the population (divided by n), 1 before the first."""


class Normaliser(NamedTuple):
    """Running statistics of observations and returns; None for what is not normalised."""

    obs: Moments | None
    reward: Moments | None
    """Moments [] of the discounted return so far, whose deviation is the rewards' scale."""
    running_return: jax.Array | None
    """[B] discounted sum of the rewards of each environment's running episode."""


def start_normaliser(obs: jax.Array, *, of_obs: bool, of_reward: bool) -> Normaliser | None:
    """Return a normaliser that has seen nothing and changes nothing, or None if neither is asked for.

    Args:
      obs: [B, ...] observations of the B environments, read for their shape.
      of_obs: standardise observations.
      of_reward: scale rewards.
    """
    zeros = lambda shape: jnp.zeros(shape, jnp.float32)
    fresh = lambda shape: Moments(zeros(()), zeros(shape), jnp.ones(shape, jnp.float32))
    if not of_obs and not of_reward:
        return None
    return Normaliser(
        fresh(obs.shape[1:]) if of_obs else None,
        fresh(()) if of_reward else None,
        zeros(obs.shape[0]) if of_reward else None,
    )


def merge_moments(moments: Moments, x: jax.Array) -> Moments:
    """Return the moments of everything seen so far and of a batch.

        mean' = mean + w d,   var' = (1 - w) var + w var_x + w (1 - w) d^2,
        d = mean_x - mean,   w = n_x / (n + n_x)

    Averages, not sums, are kept: a sum of squares would outgrow float32.

    Args:
      moments: of arrays [...].
      x: [N, ...] the batch.

    Source: Chan, Golub & LeVeque 1979.
    """
    x = x.astype(jnp.float32)
    total = moments.count + x.shape[0]
    weight = x.shape[0] / total
    mean, variance = jnp.mean(x, axis=0), jnp.var(x, axis=0)
    apart = mean - moments.mean
    merged = (1.0 - weight) * moments.variance + weight * variance
    return Moments(total, moments.mean + weight * apart, merged + weight * (1.0 - weight) * jnp.square(apart))


def standardise(moments: Moments, x: jax.Array) -> jax.Array:
    """Return `(x - mean) / std` of an array [...] of the moments' shape, clipped to [-10, 10]."""
    scaled = (x.astype(jnp.float32) - moments.mean) * jax.lax.rsqrt(moments.variance + _TINY)
    return jnp.clip(scaled, -LIMIT, LIMIT)


def normalised_obs(normaliser: Normaliser | None, obs: jax.Array) -> jax.Array:
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
        seen = steps.obs.reshape(-1, *steps.obs.shape[2:])
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
