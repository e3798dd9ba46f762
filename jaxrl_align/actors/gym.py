"""Environments with the gymnax interface as actors: a rollout is `num_envs` scans of `num_steps` steps.

This is the only file that imports gymnax. An environment is a gymnax name or a pair of an environment and
its parameters, whose `step` returns (obs, state, reward, terminated, truncated, info), resets by itself and
leaves the observation before the reset in `info["final_observation"]` (gymnax >= 1.0).
"""

import difflib
import functools
from typing import Any, NamedTuple

import chex
import gymnax
import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from jaxrl_align.actors.actions import Distribution, make_distribution, to_environment
from jaxrl_align.actors.checks import Critic, check_at_least_one, check_first_observation, check_net
from jaxrl_align.actors.normalisation import normalise_steps, normalised, start_normaliser
from jaxrl_align.actors.rollout import (
    WINDOW,
    EnvState,
    GymState,
    Policy,
    Steps,
    first_episodes,
    record_episodes,
    reset,
    start,
    unroll,
)
from jaxrl_align.losses import Categorical
from jaxrl_align.nets.mlp import Net
from jaxrl_align.types import Actor, Evaluation, Metrics, Params, Trajectory

__all__ = [
    "WINDOW",
    "EnvState",
    "Episodes",
    "GymState",
    "Policy",
    "Steps",
    "evaluate_policy",
    "first_episodes",
    "greedy",
    "make_actor",
    "make_environment",
    "num_actions",
    "record_episodes",
    "reset",
    "sampled",
    "start",
    "unroll",
]

Environment = str | tuple[Any, Any]
"""A gymnax name, or (environment, parameters)."""


class Episodes(NamedTuple):
    """The first episode of each of N environments."""

    episode_return: chex.Array
    """[N] undiscounted; of the steps seen where the episode did not end."""
    episode_length: chex.Array
    """[N] int32."""
    finished: chex.Array
    """[N] bool: whether it ended within the steps allowed."""


@functools.cache
def _make_registered(name: str) -> tuple[Any, Any]:
    # gymnax jits `step` per instance, so one instance per name spares a retrace.
    return gymnax.make(name)


def make_environment(env: Environment) -> tuple[Any, Any]:
    """Return (environment, parameters), built once per name, after checking its interface without running it.

    Raises:
      ValueError: for an unknown name, or a `step` that does not return the six values of gymnax >= 1.0.
    """
    if isinstance(env, str):
        if env not in gymnax.registered_envs:
            by_lower = {name.lower(): name for name in gymnax.registered_envs}
            close = difflib.get_close_matches(env.lower(), by_lower, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(by_lower[name] for name in close)}? " if close else ""
            raise ValueError(f"unknown environment {env!r}; {hint}gymnax.registered_envs lists all of them")
        env = _make_registered(env)
    if not isinstance(env, tuple) or len(env) != 2:
        raise ValueError(f"env must be a name or a pair (environment, params); got {type(env).__name__}")
    environment, env_params = env
    key = jax.random.key(0)
    _, state = jax.eval_shape(environment.reset, key, env_params)
    action = jax.eval_shape(environment.action_space(env_params).sample, key)
    values = jax.eval_shape(environment.step, key, state, action, env_params)
    if len(values) != 6 or "final_observation" not in values[5]:
        raise ValueError(
            f"environment.step must return (obs, state, reward, terminated, truncated, info) with "
            f'info["final_observation"], as gymnax >= 1.0 does; {type(environment).__name__} returns '
            f"{len(values)} values; port it, keeping termination and truncation apart"
        )
    return environment, env_params


def num_actions(env: Environment) -> int:
    """Return the number of discrete actions.

    Raises:
      ValueError: if the action space is not discrete, or for what `make_environment` refuses.
    """
    environment, env_params = make_environment(env)
    space = environment.action_space(env_params)
    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"expected a discrete action space, got {type(space).__name__} of {type(environment).__name__}; "
            f"this net chooses among discrete actions: take another environment, or discretise this one"
        )
    return int(space.n)


def sampled(net: Net, params: Params, distribution: Distribution = Categorical) -> Policy:
    """Return the policy that draws its action from the net's distribution."""
    return lambda key, obs: make_distribution(distribution, net.apply(params, obs)[0]).sample(key)


def greedy(net: Net, params: Params, distribution: Distribution = Categorical) -> Policy:
    """Return the policy that takes the distribution's mode: of choices the likeliest, the first of equals."""
    return lambda key, obs: make_distribution(distribution, net.apply(params, obs)[0]).mode()


def evaluate_policy(
    env: Environment,
    policy: Policy,
    key: chex.PRNGKey,
    *,
    num_episodes: int,
    max_steps: int,
    distribution: Distribution = Categorical,
) -> Episodes:
    """Play one episode in each of `num_episodes` fresh environments, apart from any training; jittable.

    Args:
      env: a gymnax name or (environment, params).
      policy: `greedy(net, params)`, `sampled(net, params)` or any `(key, obs) -> action`.
      key: seeds the starts, the policy and the dynamics.
      num_episodes: N.
      max_steps: at most this many steps are played of each.
      distribution: what the policy's actions are drawn from, which says how they become the environment's.

    Returns:
      `Episodes` with leaves [N].

    Raises:
      ValueError: for a count below 1, or for what `make_environment` refuses.
    """
    check_at_least_one(num_episodes=num_episodes, max_steps=max_steps)
    environment, env_params = make_environment(env)
    to_env = to_environment(distribution, environment.action_space(env_params))

    def play(key: chex.PRNGKey) -> Episodes:
        key_reset, key_unroll = jax.random.split(key)
        begin = reset(environment, env_params, key_reset)
        _, steps = unroll(environment, env_params, policy, begin, key_unroll, max_steps, to_env)
        return first_episode(steps)

    return jax.vmap(play)(jax.random.split(key, num_episodes))


def first_episode(steps: Steps) -> Episodes:
    """Return how the first episode of one environment's steps [T] went."""
    done = steps.terminated | steps.truncated
    finished = jnp.any(done)
    last = jnp.where(finished, jnp.argmax(done), done.shape[0] - 1)
    return Episodes(steps.episode_return[last], steps.episode_length[last], finished)


def to_trajectory(
    steps: Steps, judged: Evaluation, next_value: chex.Array, mask: chex.Array, hparams: Any
) -> Trajectory:
    """Join steps [B, T] and how they were judged; a termination wins over a truncation."""
    goes_on = mask * (1.0 - steps.terminated)
    return Trajectory(
        obs=steps.obs,
        action=steps.action,
        log_prob=judged.log_prob,
        reward=steps.reward * mask,
        discount=hparams.gamma * goes_on,
        lambda_=hparams.gae_lambda * goes_on * (1.0 - steps.truncated),
        value=judged.value * mask,
        next_value=next_value * mask,
        mask=mask,
    )


def _of_actions_taken_next(steps: Steps, value: chex.Array, otherwise: chex.Array) -> chex.Array:
    """Return the next step's value [B, T], or another where the episode or the rollout ends."""
    ended = (steps.terminated | steps.truncated).at[:, -1].set(True)
    return jnp.where(ended, otherwise, jnp.roll(value, -1, axis=1))


def make_actor(
    env: Environment,
    net: Net,
    *,
    num_envs: int,
    num_steps: int,
    distribution: Distribution = Categorical,
    critic: Critic = "state",
    whole_episodes: bool = False,
    normalise_obs: bool = False,
    normalise_reward: bool = False,
) -> Actor:
    """Build the actor that runs a stochastic policy in `num_envs` copies of an environment.

    Truncation is not termination: `next_value` is the critic's estimate of the observation before the reset,
    and only a termination (which wins where both flags are set) sets the discount to 0.

    Args:
      env: a gymnax name such as "CartPole-v1", or (environment, params).
      net: `(params, obs) -> (policy, value)`: logits [A], A the environment's number of actions, or [K, A]
        for K choices, or a pair (mean, log_std) of its action's shape; and what `critic` says.
      num_envs: B, environments side by side.
      num_steps: T, steps of each per rollout.
      distribution: what the policy output parametrises; a DiagonalGaussian's draws are clipped to the action
        space, a TanhGaussian's stretched over it.
      critic: "state" if the net's value is V(s) []; "sarsa" or "max" if it is Q(s, .) [A], read as
        `value` = Q(s, a) and `next_value` = Q(s', a') of the action taken next (its expectation under the
        policy where none follows), or max Q(s', .).
      whole_episodes: every rollout starts anew and each environment plays one episode, the rest is padding,
        as Monte Carlo returns need it; `num_steps` should be the environment's time limit.
      normalise_obs: observations are standardised by their running moments, which `env_state.normaliser`
        carries; to play the policy elsewhere see `normalisation.normalised`.
      normalise_reward: rewards are divided by the running deviation of the discounted return; metrics keep
        the environment's unit.

    Returns:
      An `Actor`; `hparams` must have `gamma` and `gae_lambda`, `batch` and `frozen` are not read. A rollout's
      metrics are `episodes` (how many ended in it), `episode_return_sum` and `episode_length_sum` over these,
      so that means over any window can be formed, and `episode_return_last100`, the mean return of the last
      100 episodes or of as many as have ended: NaN before the first, for 0 would be a lie.

    Raises:
      ValueError: before any compilation, for a count below 1, an action space that the distribution does not
        fit, a net whose outputs have other shapes, a first observation of your own environment that is not
        finite, or for what `make_environment` refuses.
    """
    check_at_least_one(num_envs=num_envs, num_steps=num_steps)
    environment, env_params = make_environment(env)
    space = environment.action_space(env_params)
    if not isinstance(env, str):
        check_first_observation(environment, env_params)
    check_net(net, distribution, critic, environment, env_params)
    to_env = to_environment(distribution, space)

    def judge(params: Params, obs: chex.Array, action: chex.Array) -> Evaluation:
        output, value = net.apply(params, obs)
        policy = make_distribution(distribution, output)
        value = value if critic == "state" else value[action]
        return Evaluation(policy.log_prob(action), policy.entropy(), value, policy)

    def value_of(params: Params, obs: chex.Array) -> chex.Array:
        output, value = net.apply(params, obs)
        if critic == "state":
            return value
        return jnp.max(value) if critic == "max" else jnp.sum(jax.nn.softmax(output) * value)

    def init_params(key: chex.PRNGKey) -> Params:
        obs, _ = jax.eval_shape(environment.reset, key, env_params)
        return net.init(key, jnp.zeros(obs.shape, obs.dtype))

    def init_env(key: chex.PRNGKey, hparams: Any) -> GymState:
        state = start(environment, env_params, key, num_envs)
        normaliser = start_normaliser(state.envs.obs, of_obs=normalise_obs, of_reward=normalise_reward)
        return state._replace(normaliser=normaliser)

    def rollout(
        params: Params, frozen: Any, env_state: GymState, key: chex.PRNGKey, hparams: Any, batch: Any = None
    ) -> tuple[GymState, Trajectory, Metrics]:
        policy = normalised(sampled(net, params, distribution), env_state.normaliser)
        if whole_episodes:
            key, key_start = jax.random.split(key)
            env_state = env_state._replace(envs=start(environment, env_params, key_start, num_envs).envs)
        envs, steps = jax.vmap(lambda e, k: unroll(environment, env_params, policy, e, k, num_steps, to_env))(
            env_state.envs, jax.random.split(key, num_envs)
        )
        mask = first_episodes(steps) if whole_episodes else jnp.ones_like(steps.reward)
        if env_state.normaliser is not None:
            normaliser, steps = normalise_steps(env_state.normaliser, steps, hparams.gamma)
            env_state = env_state._replace(normaliser=normaliser)
        # The critic is not needed to act: both its passes run once over all steps, outside the scan.
        judged = evaluate_all(params, steps)
        next_value = over_steps(params, steps.final_obs)
        if critic == "sarsa":
            next_value = _of_actions_taken_next(steps, judged.value, next_value)
        played = steps._replace(
            terminated=steps.terminated & (mask > 0), truncated=steps.truncated & (mask > 0)
        )
        env_state, metrics = record_episodes(env_state, envs, played)
        trajectory = to_trajectory(steps, judged, next_value, mask, hparams)
        return env_state, trajectory, metrics

    def evaluate(params: Params, frozen: Any, trajectory: Trajectory | Steps) -> Evaluation:
        return jax.vmap(judge, (None, 0, 0))(params, trajectory.obs, trajectory.action)

    evaluate_all = jax.vmap(lambda params, steps: evaluate(params, None, steps), (None, 0))
    over_steps = jax.vmap(jax.vmap(value_of, (None, 0)), (None, 0))
    return Actor(init_params, init_env, rollout, evaluate)
