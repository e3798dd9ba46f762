"""A Markov decision process small enough to enumerate: the exact gradient of its return is known.

Its numbers are NumPy's, in double precision; each function computes in JAX's current precision.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

STATES, ACTIONS, HORIZON = 3, 2, 3
_RNG = np.random.default_rng(3)
START = _RNG.dirichlet(np.ones(STATES))
TRANSITION = _RNG.dirichlet(np.ones(STATES), size=(STATES, ACTIONS))
REWARD = _RNG.normal(size=(STATES, ACTIONS))
LOGITS = _RNG.normal(size=(STATES, ACTIONS)) * 0.5


class Paths(NamedTuple):
    """States, actions and rewards, each [N, T]."""

    state: jax.Array
    action: jax.Array
    reward: jax.Array


def fresh(*arrays: np.ndarray) -> list[jax.Array]:
    """Convert copies: tracing remembers an array's first conversion, whatever the precision is by then."""
    return [jnp.asarray(x.copy()) for x in arrays]


def expected_return(logits: jax.Array) -> jax.Array:
    """Return J(theta), differentiable through the process: the state distribution is pushed forward."""
    policy, total = jax.nn.softmax(jnp.asarray(logits)), 0.0
    occupancy, transition, reward = fresh(START, TRANSITION, REWARD)
    for _ in range(HORIZON):
        joint = occupancy[:, None] * policy
        total += jnp.sum(joint * reward)
        occupancy = jnp.einsum("sa,sat->t", joint, transition)
    return total


def state_values(logits: jax.Array) -> jax.Array:
    """Return V_t(s), [T, S], by backward induction."""
    policy, value, values = jax.nn.softmax(jnp.asarray(logits)), jnp.zeros(STATES), []
    transition, reward = fresh(TRANSITION, REWARD)
    for _ in range(HORIZON):
        value = jnp.sum(policy * (reward + transition @ value), axis=1)
        values.append(value)
    return jnp.stack(values[::-1])


def all_paths(logits: jax.Array) -> tuple[Paths, jax.Array]:
    """Return every path and its probability [N]; the probabilities sum to 1."""
    pairs = list(itertools.product(range(STATES), range(ACTIONS)))
    steps = np.array(list(itertools.product(pairs, repeat=HORIZON)))
    state, action = steps[..., 0], steps[..., 1]
    odds = np.exp(np.asarray(logits))
    policy = odds / odds.sum(axis=1, keepdims=True)
    moves = np.prod(TRANSITION[state[:, :-1], action[:, :-1], state[:, 1:]], axis=1)
    probability = START[state[:, 0]] * moves * np.prod(policy[state, action], axis=1)
    return Paths(*fresh(state, action, REWARD[state, action])), jnp.asarray(probability)


def sample_paths(key: jax.Array, logits: jax.Array, num: int) -> Paths:
    """Draw paths."""
    start, transition, reward = fresh(START, TRANSITION, REWARD)

    def step(state, key):
        key_action, key_state = jax.random.split(key)
        action = jax.random.categorical(key_action, logits[state])
        after = jax.random.categorical(key_state, jnp.log(transition[state, action]))
        return after, (state, action, reward[state, action])

    def path(key):
        key_start, key_steps = jax.random.split(key)
        first = jax.random.categorical(key_start, jnp.log(start))
        return jax.lax.scan(step, first, jax.random.split(key_steps, HORIZON))[1]

    return Paths(*jax.vmap(path)(jax.random.split(key, num)))


def log_probs(logits: jax.Array, paths: Paths) -> jax.Array:
    """Return the log-probability of each action, [N, T]."""
    return jax.nn.log_softmax(logits)[paths.state, paths.action]
