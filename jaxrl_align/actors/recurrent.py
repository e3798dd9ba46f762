"""Policies with memory: the same trajectories and the same learners, judged by running the sequence again.

A memory starts anew with every episode, in the rollout and when the rollout is judged; an episode that goes
on in the next rollout takes its memory along, through `GymState.envs`.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.actors.gym import check_net, to_trajectory
from jaxrl_align.actors.normalisation import Normaliser, normalise_rollout, normalised_obs, start_normaliser
from jaxrl_align.checks import check_counts
from jaxrl_align.envs.actions import Distribution, make_distribution, to_environment
from jaxrl_align.envs.registry import (
    Environment,
    leave,
    make_environment,
    observation_like,
    open_environment,
)
from jaxrl_align.envs.rollout import (
    EnvState,
    Episodes,
    GymState,
    Steps,
    advance,
    first_episode,
    record_episodes,
    reset,
    start,
    step_keys,
)
from jaxrl_align.losses import Categorical
from jaxrl_align.nets.adapters import overlay
from jaxrl_align.nets.memory import RecurrentNet
from jaxrl_align.nets.mlp import Net
from jaxrl_align.types import Actor, Evaluation, Metrics, Params, Trajectory


class Sequence(NamedTuple):
    """The `obs` of a recurrent policy's trajectories: T steps and the memories before them."""

    obs: Any
    """[T, ...], a tree of arrays where the environment gives one."""
    first: jax.Array
    """[T] bool: the step is an episode's first, before which the memory starts anew."""
    memory: jax.Array
    """[T, H] before the step, by the parameters that acted. Only the first of a segment is read; all are kept
    so that a rollout can be cut into segments of any length."""


class _Seen(NamedTuple):
    """The net's outputs over T steps; each field [T, ...]."""

    before: jax.Array
    after: jax.Array
    log_prob: jax.Array
    value: jax.Array


def _unroll(
    environment: Any,
    env_params: Any,
    net: RecurrentNet,
    params: Params,
    begin: tuple[EnvState, jax.Array],
    key: chex.PRNGKey,
    num_steps: int,
    distribution: Distribution,
    normaliser: Normaliser | None = None,
    greedy: bool = False,
) -> tuple[tuple[EnvState, jax.Array], tuple[Steps, _Seen]]:
    to_env = to_environment(distribution, environment.action_space(env_params))

    def one_step(carry: tuple, words: jax.Array) -> tuple:
        env_state, memory = carry
        key_action, key_step = jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))
        after, output, value = net.apply(params, memory, normalised_obs(normaliser, env_state.obs))
        policy = make_distribution(distribution, output)
        action = policy.mode() if greedy else policy.sample(key_action)
        env_state, step = advance(environment, env_params, env_state, action, key_step, to_env)
        seen = _Seen(memory, after, policy.log_prob(action), value)
        memory = jnp.where(step.terminated | step.truncated, net.initial, after)
        return (env_state, memory), (step, seen)

    return jax.lax.scan(one_step, begin, step_keys(key, num_steps))


def make_recurrent_actor(
    env: Environment,
    net: RecurrentNet,
    *,
    num_envs: int,
    num_steps: int,
    distribution: Distribution = Categorical,
    normalise_obs: bool = False,
    normalise_reward: bool = False,
) -> Actor:
    """Build the actor of a policy with memory; the learners are those of `gym.make_actor`.

    Judging runs the sequence again from the memory that the first step was taken with, so gradients flow
    through time; a learner's `segment_length` is how far back they go.

    Args:
      env: a gymnax name such as "CartPole-v1", or (environment, params).
      net: `(params, memory, obs) -> (memory, policy, value)`, for example of `nets.with_memory`.
      num_envs: B, environments side by side.
      num_steps: T, steps of each per rollout.
      distribution: what the policy output parametrises.
      normalise_obs: as for `gym.make_actor`.
      normalise_reward: as for `gym.make_actor`.

    Returns:
      An `Actor`, as `gym.make_actor` returns it; its trajectories' `obs` is a `Sequence`, and
      `env_state.envs` a pair of the environments and their memories [B, H].

    Raises:
      ValueError: as `gym.make_actor` does.
    """
    environment, env_params = open_environment(env, num_envs=num_envs, num_steps=num_steps)
    _check(net, distribution, environment, env_params)

    def init_params(key: chex.PRNGKey) -> Params:
        return net.init(key, observation_like(environment, env_params))

    def init_env(key: chex.PRNGKey, hparams: Any) -> GymState:
        state = start(environment, env_params, key, num_envs)
        normaliser = start_normaliser(state.envs.obs, of_obs=normalise_obs, of_reward=normalise_reward)
        memory = jnp.broadcast_to(net.initial, (num_envs, *net.initial.shape))
        return state._replace(envs=(state.envs, memory), normaliser=normaliser)

    def rollout(
        params: Params, frozen: Any, env_state: GymState, key: chex.PRNGKey, hparams: Any, batch: Any = None
    ) -> tuple[GymState, Trajectory, Metrics]:
        params = overlay(frozen, params)

        def play(begin: tuple[EnvState, jax.Array], key: chex.PRNGKey) -> tuple:
            normaliser = env_state.normaliser
            return _unroll(
                environment, env_params, net, params, begin, key, num_steps, distribution, normaliser
            )

        envs, (steps, seen) = jax.vmap(play)(env_state.envs, jax.random.split(key, num_envs))
        env_state, metrics = record_episodes(env_state, envs, steps)
        env_state, steps = normalise_rollout(env_state, steps, hparams.gamma)
        next_value = over_steps(params, seen.after, steps.final_obs)
        mask = jnp.ones_like(steps.reward)
        trajectory = to_trajectory(steps, seen, next_value, mask, hparams)
        sequence = Sequence(steps.obs, steps.episode_length == 1, seen.before)
        return env_state, trajectory._replace(obs=sequence), metrics

    def evaluate(params: Params, frozen: Any, trajectory: Trajectory) -> Evaluation:
        params = overlay(frozen, params)

        def one_step(memory: jax.Array, step: tuple) -> tuple[jax.Array, Evaluation]:
            obs, first, action = step
            memory, output, value = net.apply(params, jnp.where(first, net.initial, memory), obs)
            policy = make_distribution(distribution, output)
            return memory, Evaluation(policy.log_prob(action), policy.entropy(), value, policy)

        obs, first, memory = trajectory.obs
        return jax.lax.scan(one_step, memory[0], (obs, first, trajectory.action))[1]

    value_of = lambda params, memory, obs: net.apply(params, memory, obs)[2]
    over_steps = jax.vmap(jax.vmap(value_of, (None, 0, 0)), (None, 0, 0))
    return Actor(init_params, init_env, rollout, evaluate)


def evaluate_recurrent_policy(
    env: Environment,
    net: RecurrentNet,
    params: Params,
    key: chex.PRNGKey,
    *,
    num_episodes: int,
    max_steps: int,
    distribution: Distribution = Categorical,
    normaliser: Normaliser | None = None,
    greedy: bool = True,
) -> Episodes:
    """Play one episode in each of `num_episodes` fresh environments; jittable.

    Args:
      env: a gymnax name or (environment, params).
      net: the policy's.
      params: its parameters.
      key: seeds the starts, the policy and the dynamics.
      num_episodes: N.
      max_steps: at most this many steps are played of each.
      distribution: what the policy output parametrises.
      normaliser: `env_state.normaliser` of the training, read but not moved.
      greedy: take the distribution's mode instead of a draw.

    Returns:
      `Episodes` with leaves [N].

    Raises:
      ValueError: for a count below 1, a net that does not fit, or for what `make_environment` refuses.
    """
    check_counts(num_episodes=num_episodes, max_steps=max_steps)
    environment, env_params = make_environment(env)
    _check(net, distribution, environment, env_params)

    def play(key: chex.PRNGKey) -> Episodes:
        key_reset, key_unroll = jax.random.split(key)
        begin = (reset(environment, env_params, key_reset), net.initial)
        (end, _), (steps, _) = _unroll(
            environment,
            env_params,
            net,
            params,
            begin,
            key_unroll,
            max_steps,
            distribution,
            normaliser,
            greedy,
        )
        return leave(environment, end.state, first_episode(steps))

    return jax.vmap(play)(jax.random.split(key, num_episodes))


def _check(net: RecurrentNet, distribution: Distribution, environment: Any, env_params: Any) -> None:
    memoryless = Net(net.init, lambda params, obs: net.apply(params, net.initial, obs)[1:])
    check_net(memoryless, distribution, "state", environment, env_params)
