"""Exact solutions of finite decision processes, and tabular Q-learning.

Everything is jitted array algebra over an `MDP`; a linear solve is the check on every iteration.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_align.checks import refuse
from jaxrl_align.learner import begin
from jaxrl_align.losses import q_learning_error
from jaxrl_align.rl.replay import time_first
from jaxrl_align.types import MDP, Actor, Learner, Metrics, Numeric, State, Transition


class Solution(NamedTuple):
    """An optimal solution of a decision process."""

    v: jax.Array
    """[S] optimal state values, `max_a q`."""
    q: jax.Array
    """[S, A] optimal action values."""
    policy: jax.Array
    """[S] int32, a greedy action of each state, the first of equals."""
    iterations: jax.Array
    """[] int32 sweeps of value iteration, or improvements of policy iteration."""


def action_values(mdp: MDP, v: jax.Array) -> jax.Array:
    """Look one step ahead (A4).

        Q(s, a) = sum_{s'} T(s, a, s') [R(s, a, s') + gamma V(s')]

    Args:
      mdp: the process.
      v: [S] values of the states.

    Returns:
      [S, A].
    """
    return jnp.einsum("sat,sat->sa", mdp.transition, mdp.reward) + mdp.gamma * (mdp.transition @ v)


def solve_policy(mdp: MDP, policy: jax.Array) -> jax.Array:
    """Solve `V = r_pi + gamma P_pi V` for V by elimination; exact but for rounding.

    Args:
      mdp: the process.
      policy: [S, A] probabilities, or [S] integers, an action of each state.

    Returns:
      [S] the policy's state values.

    Raises:
      ValueError: for a policy of another shape, actions that do not exist, or rows that are no probabilities.
    """
    policy = _probabilities(mdp, policy)
    transition = jnp.einsum("sa,sat->st", policy, mdp.transition)
    reward = jnp.einsum("sa,sat,sat->s", policy, mdp.transition, mdp.reward)
    return jnp.linalg.solve(jnp.eye(reward.shape[0]) - mdp.gamma * transition, reward)


def policy_evaluation(
    mdp: MDP, policy: jax.Array, *, tolerance: Numeric = 1e-6, max_sweeps: int = 100_000
) -> tuple[jax.Array, jax.Array]:
    """Evaluate a policy by sweeps of `V <- sum_a pi(a|s) Q_V(s, a)`.

    Args:
      mdp: the process.
      policy: [S, A] probabilities, or [S] integers, an action of each state.
      tolerance: stops when no value moved further than this.
      max_sweeps: stops here at the latest.

    Returns:
      v: [S] the policy's state values, within `tolerance gamma / (1 - gamma)`.
      sweeps: [] int32.

    Raises:
      ValueError: for a policy of another shape, actions that do not exist, or rows that are no probabilities.
    """
    policy = _probabilities(mdp, policy)
    return _iterate(lambda v: jnp.sum(policy * action_values(mdp, v), axis=1), mdp, tolerance, max_sweeps)


def value_iteration(mdp: MDP, *, tolerance: Numeric = 1e-6, max_sweeps: int = 100_000) -> Solution:
    """Iterate the optimality equation (A3); each sweep shrinks the error by gamma at least.

        V(s) <- max_a sum_{s'} T(s, a, s') [R(s, a, s') + gamma V(s')]

    Args:
      mdp: the process.
      tolerance: stops when no value moved further than this.
      max_sweeps: stops here at the latest.
    """
    v, sweeps = _iterate(lambda v: jnp.max(action_values(mdp, v), axis=1), mdp, tolerance, max_sweeps)
    return _solution(mdp, v, sweeps)


def policy_iteration(mdp: MDP, *, max_improvements: int = 1_000) -> Solution:
    """Alternate exact evaluation and greedy improvement until the policy stays (Howard 1960).

    An action changes for a gain beyond rounding, relative to its value: the rewards' scale does not matter.
    An improvement after which the values do not add up to more is not kept and ends it: no equals take turns.

    Args:
      mdp: the process.
      max_improvements: stops here at the latest.
    """

    def improve(carry: Any) -> Any:
        policy, v, _, count = carry
        q = action_values(mdp, v)
        current = jnp.take_along_axis(q, policy[:, None], 1)[:, 0]
        gains = jnp.max(q, axis=1) - current > 8.0 * jnp.finfo(q.dtype).eps * jnp.abs(current)
        better = jnp.where(gains, jnp.argmax(q, axis=1).astype(jnp.int32), policy)
        better_v = solve_policy(mdp, better)
        rises = jnp.sum(better_v - v) > 0
        return jnp.where(rises, better, policy), jnp.where(rises, better_v, v), rises, count + 1

    first = jnp.zeros(mdp.transition.shape[0], jnp.int32)
    start = (first, solve_policy(mdp, first), jnp.array(True), jnp.zeros((), jnp.int32))
    going_on = lambda carry: carry[2] & (carry[3] < max_improvements)
    _, v, _, count = jax.lax.while_loop(going_on, improve, start)
    return _solution(mdp, v, count)


def _probabilities(mdp: MDP, policy: jax.Array) -> jax.Array:
    """Return a policy as [S, A] probabilities, after checking those that have values."""
    states, actions = mdp.transition.shape[:2]
    if policy.shape == (states,) and jnp.issubdtype(policy.dtype, jnp.integer):
        if not isinstance(policy, jax.core.Tracer):
            chosen = np.asarray(policy)
            if not ((chosen >= 0) & (chosen < actions)).all():
                raise ValueError(
                    f"a policy's actions must be from 0 to {actions - 1}; got {chosen.min()} to "
                    f"{chosen.max()}; actions count from 0"
                )
        return jax.nn.one_hot(policy, actions, dtype=mdp.reward.dtype)
    if policy.shape != (states, actions):
        raise ValueError(
            f"policy must be probabilities [S, A] = {[states, actions]}, or integers [S] = {[states]}, an "
            f"action of each state; got {policy.dtype} of shape {policy.shape}"
        )
    if not isinstance(policy, jax.core.Tracer):
        table = np.asarray(policy, np.float64)
        sums = table.sum(1)
        if not ((table >= 0).all() and np.allclose(sums, 1.0, atol=1e-2)):
            raise ValueError(
                f"each row of policy must be probabilities that sum to 1; got sums from {sums.min():g} to "
                f"{sums.max():g} and numbers of at least {table.min():g}; pass logits through jax.nn.softmax"
            )
    return policy


def _iterate(backup: Any, mdp: MDP, tolerance: Numeric, max_sweeps: int) -> tuple[jax.Array, jax.Array]:
    def sweep(carry: Any) -> Any:
        v, _, count = carry
        new = backup(v)
        return new, jnp.max(jnp.abs(new - v)), count + 1

    going_on = lambda carry: (carry[1] > tolerance) & (carry[2] < max_sweeps)
    start = jnp.zeros(mdp.transition.shape[0], mdp.reward.dtype)
    infinity = jnp.full((), jnp.inf, mdp.reward.dtype)
    v, _, count = jax.lax.while_loop(going_on, sweep, (start, infinity, jnp.zeros((), jnp.int32)))
    return v, count


def _solution(mdp: MDP, v: jax.Array, iterations: jax.Array) -> Solution:
    q = action_values(mdp, v)
    return Solution(jnp.max(q, axis=1), q, jnp.argmax(q, axis=1).astype(jnp.int32), iterations)


class QLearningHParams(NamedTuple):
    """The traced scalars of tabular Q-learning."""

    learning_rate: Numeric = 1.0
    """Rate of a pair's first visit."""
    decay: Numeric = 0.8
    """The n-th visit's rate is `learning_rate / n^decay`. Robbins and Monro's conditions, sum alpha = inf and
    sum alpha^2 < inf, hold for 1/2 < decay <= 1; 0 is a constant rate, which violates the second."""
    gamma: Numeric = 0.99
    epsilon: Numeric = 0.3


def make_q_learning(actor: Actor) -> Learner:
    """Build tabular Q-learning (Watkins & Dayan 1992): one transition at a time, a rate for each pair.

        Q(s, a) <- Q(s, a) + alpha_n(s, a) [r + gamma max_a' Q(s', a') - Q(s, a)]

    Args:
      actor: whose observation is the state's number, and whose net is `make_table`.

    Returns:
      A `Learner`: `params` is Q, [S, A], `opt_state` the visits of each pair. Its metrics are the rollout's
      and `td_error`, the mean absolute error.
    """

    no_visits = lambda q: jnp.zeros(q.shape, jnp.int32)
    init = functools.partial(begin, actor.init_params, no_visits, actor.init_env)
    return Learner(init, functools.partial(step_q_learning, actor))


def step_q_learning(
    actor: Actor, state: State, batch: Any = None, frozen: Any = None
) -> tuple[State, Metrics]:
    """Act for one rollout and learn from each transition in the order of time; pure."""
    refuse(batch=batch, frozen=frozen)
    key, key_act = jax.random.split(state.key)
    hparams = state.hparams
    env_state, transition, metrics = actor.rollout(
        state.params, None, state.env_state, key_act, hparams, None
    )

    def learn(carry: tuple[jax.Array, jax.Array], one: Transition) -> tuple[Any, jax.Array]:
        q, visits = carry
        discount = hparams.gamma * (1.0 - one.terminated)
        error = q_learning_error(q[one.obs], one.action, one.reward, discount, q[one.next_obs])
        visit = optax.safe_increment(visits[one.obs, one.action])
        visits = visits.at[one.obs, one.action].set(visit)
        rate = hparams.learning_rate * visit.astype(jnp.float32) ** -hparams.decay
        return (q.at[one.obs, one.action].add(rate * error), visits), jnp.abs(error)

    (q, visits), errors = jax.lax.scan(learn, (state.params, state.opt_state), time_first(transition))
    state = state._replace(
        params=q, opt_state=visits, step=optax.safe_increment(state.step), env_state=env_state, key=key
    )
    return state, metrics | {"td_error": jnp.mean(errors)}
