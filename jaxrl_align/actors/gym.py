"""Environments with the gymnax interface as actors: a rollout is `num_envs` scans of `num_steps` steps."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.actors.normalisation import normalise_rollout, normalised, start_normaliser
from jaxrl_align.envs.actions import Distribution, make_distribution, output_shape, to_environment
from jaxrl_align.envs.registry import Environment, leave, observation_like, open_environment
from jaxrl_align.envs.rollout import (
    GymState,
    Policy,
    Steps,
    first_episodes,
    record_episodes,
    start,
    unroll,
)
from jaxrl_align.losses import Categorical
from jaxrl_align.nets.adapters import overlay
from jaxrl_align.nets.mlp import Net, apply_rows
from jaxrl_align.types import Actor, Evaluation, Metrics, Params, Trajectory

Critic = Literal["state", "sarsa", "max"]
"""The meaning of a net's critic output: V(s) [], or Q(s, .) [A] whose next value is that of the action taken
next ("sarsa", which learns the policy's Q) or of the best one ("max", which learns the optimal Q)."""


def sampled(net: Net, params: Params, distribution: Distribution = Categorical) -> Policy:
    """Return the policy that draws its action from the net's distribution."""
    return lambda key, obs: make_distribution(distribution, net.apply(params, obs)[0]).sample(key)


def greedy(net: Net, params: Params, distribution: Distribution = Categorical) -> Policy:
    """Return the policy that takes the distribution's mode: of choices the likeliest, the first of equals."""
    return lambda key, obs: make_distribution(distribution, net.apply(params, obs)[0]).mode()


def to_trajectory(
    steps: Steps, judged: Evaluation, next_value: jax.Array, mask: jax.Array, hparams: Any
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


def _judge(
    distribution: Distribution, critic: Critic, output: Any, value: jax.Array, action: jax.Array
) -> Evaluation:
    policy = make_distribution(distribution, output)
    value = value if critic == "state" else value[action]
    return Evaluation(policy.log_prob(action), policy.entropy(), value, policy)


def _value_of(critic: Critic, output: Any, value: jax.Array) -> jax.Array:
    if critic == "state":
        return value
    return jnp.max(value) if critic == "max" else jnp.sum(jax.nn.softmax(output) * value)


def over_steps(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a function of rows [N, ...] to the steps [B, T, ...] of several trajectories, all at once.

    Args:
      function: of a tree with leaves [N, ...], N = B * T, to another.
      tree: its leaves begin with [B, T].

    Returns:
      The function's tree with leaves [B, T, ...].
    """
    lead = jax.tree.leaves(tree)[0].shape[:2]
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), function(rows))


def _of_actions_taken_next(steps: Steps, value: jax.Array, otherwise: jax.Array) -> jax.Array:
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
      An `Actor`; `hparams` must have `gamma` and `gae_lambda`; `frozen` is the base that the parameters are
      laid over, or None. A rollout's metrics are `episodes` (how many ended in it), `episode_return_sum` and
      `episode_length_sum` over these, so that means over any window can be formed, and
      `episode_return_last100`, the mean return of the last 100 episodes or of as many as have ended: NaN
      until the first episode has ended.

    Raises:
      ValueError: before any compilation, for a count below 1, an action space that the distribution does not
        fit, a net whose outputs have other shapes, a first observation of your own environment that is not
        finite, or for what `make_environment` refuses.
    """
    environment, env_params = open_environment(env, num_envs=num_envs, num_steps=num_steps)
    check_net(net, distribution, critic, environment, env_params)
    to_env = to_environment(distribution, environment.action_space(env_params))
    judge = jax.vmap(functools.partial(_judge, distribution, critic))

    def init_params(key: chex.PRNGKey) -> Params:
        return net.init(key, observation_like(environment, env_params))

    def init_env(key: chex.PRNGKey, hparams: Any) -> GymState:
        state = start(environment, env_params, key, num_envs)
        normaliser = start_normaliser(state.envs.obs, of_obs=normalise_obs, of_reward=normalise_reward)
        return state._replace(normaliser=normaliser)

    def rollout(
        params: Params, frozen: Any, env_state: GymState, key: chex.PRNGKey, hparams: Any, batch: Any = None
    ) -> tuple[GymState, Trajectory, Metrics]:
        params = overlay(frozen, params)
        policy = normalised(sampled(net, params, distribution), env_state.normaliser)
        if whole_episodes:
            key, key_start = jax.random.split(key)
            fresh = start(environment, env_params, key_start, num_envs).envs
            fresh = jax.vmap(functools.partial(leave, environment))(env_state.envs.state, fresh)
            env_state = env_state._replace(envs=fresh)
        envs, steps = jax.vmap(lambda e, k: unroll(environment, env_params, policy, e, k, num_steps, to_env))(
            env_state.envs, jax.random.split(key, num_envs)
        )
        mask = first_episodes(steps) if whole_episodes else jnp.ones_like(steps.reward)
        env_state, steps = normalise_rollout(env_state, steps, hparams.gamma)
        # The critic is not needed to act: both its passes run once over all steps, outside the scan.
        judged = over_steps(lambda steps: evaluate(params, None, steps), steps)
        next_value = over_steps(lambda obs: value_of(*apply_rows(net, params, obs)), steps.final_obs)
        if critic == "sarsa":
            next_value = _of_actions_taken_next(steps, judged.value, next_value)
        played = steps._replace(
            terminated=steps.terminated & (mask > 0), truncated=steps.truncated & (mask > 0)
        )
        env_state, metrics = record_episodes(env_state, envs, played)
        trajectory = to_trajectory(steps, judged, next_value, mask, hparams)
        return env_state, trajectory, metrics

    def evaluate(params: Params, frozen: Any, trajectory: Trajectory | Steps) -> Evaluation:
        outputs = apply_rows(net, overlay(frozen, params), trajectory.obs)
        return judge(*outputs, trajectory.action)

    value_of = jax.vmap(functools.partial(_value_of, critic))
    return Actor(init_params, init_env, rollout, evaluate, split_params=net.split_params, stepwise=True)


def check_net(
    net: Net, distribution: Distribution, critic: Critic, environment: Any, env_params: Any
) -> None:
    """Raise ValueError unless a net's outputs have the shapes that an environment and its critic need."""
    policy_shape = output_shape(distribution, environment.action_space(env_params))
    if critic not in ("state", "sarsa", "max"):
        raise ValueError(f"critic must be state, sarsa or max; got {critic!r}")
    if critic != "state" and distribution is not Categorical:
        raise ValueError(f"a critic of actions ({critic!r}) needs discrete actions; take critic='state'")
    value_shape = () if critic == "state" else policy_shape
    obs = observation_like(environment, env_params)
    outputs = jax.eval_shape(lambda k, x: net.apply(net.init(k, x), x), jax.random.key(0), obs)
    got = jax.tree.map(lambda x: x.shape, outputs)
    if got != (policy_shape, value_shape):
        raise ValueError(
            f"the net must return a policy of shape {policy_shape} and a value of shape {value_shape} for "
            f"{type(environment).__name__}; got {got}"
        )
