"""Probe environments with known answers: what a learner must find in each is computed by value iteration."""

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from jaxrl_align.envs.actions import MultiDiscrete
from jaxrl_align.envs.tabular import make_mdp

PROBES = {
    "one state": make_mdp([[[1.0]]], [[1.0]], 0.9),
    "one step": make_mdp([[[0, 1]], [[0, 1]]], [[1.0], [0.0]], 0.9, terminal=[False, True]),
    "delayed reward": make_mdp(
        [[[0, 1, 0, 0]], [[0, 0, 1, 0]], [[0, 0, 0, 1]], [[0, 0, 0, 1]]],
        [[0.0], [0.0], [1.0], [0.0]],
        0.9,
        terminal=[False, False, False, True],
    ),
    "policy-dependent": make_mdp(
        [[[0, 1, 0], [0, 0, 1]], [[0, 0, 1], [0, 0, 1]], [[0, 0, 1], [0, 0, 1]]],
        [[0.0, 1.0], [2.0, -1.0], [0.0, 0.0]],
        0.9,
        terminal=[False, False, True],
    ),
    "stochastic reward": make_mdp(
        [[[0, 0.25, 0.75]]] * 3, [[[0.0, 4.0, 0.0]]] * 3, 0.9, terminal=[False, True, True]
    ),
}

LOOP = make_mdp([[[1.0]]], [[1.0]], 0.9)
"""Pays 1 for ever: worth 10, unless a time limit is taken for an end."""


def numbered_line(length):
    """Return the process that pays 1 a step and ends after `length` steps."""
    transition = np.eye(length + 1, k=1)[:, None]
    transition[length, 0, length] = 1.0
    return make_mdp(transition, np.ones((length + 1, 1)), 0.9, terminal=np.arange(length + 1) == length)


class Target:
    """One step that pays -(action - 0.6)^2, action in [-1, 2] or what a wild one is worth."""

    def reset(self, key, params):
        return jnp.ones(1), jnp.zeros(())

    def step(self, key, state, action, params):
        obs, state = self.reset(key, params)
        info = {"final_observation": obs}
        return obs, state, -jnp.sum((action - 0.6) ** 2), jnp.array(True), jnp.array(False), info

    def action_space(self, params):
        return spaces.Box(-1.0, 2.0, (1,))


class Lock:
    """One step that pays 1 for each wheel of a lock at its number: 2 of 3, 0 of 2, 3 of 4."""

    def reset(self, key, params):
        return jnp.ones(1), jnp.zeros(())

    def step(self, key, state, action, params):
        obs, state = self.reset(key, params)
        reward = jnp.sum(action == jnp.array([2, 0, 3]))
        return obs, state, reward, jnp.array(True), jnp.array(False), {"final_observation": obs}

    def action_space(self, params):
        return MultiDiscrete((3, 2, 4))


class Recall:
    """Shows a cue, -1 or 1, at the first of 5 steps; the last one pays 1 for naming it. Else it shows 0."""

    length = 5

    def reset(self, key, params):
        cue = jax.random.bernoulli(key).astype(jnp.int32)
        return self.show(cue, 0), (cue, jnp.zeros((), jnp.int32))

    def show(self, cue, time):
        asked = jnp.asarray(time == self.length - 1, jnp.float32)
        return jnp.stack([jnp.where(time == 0, 2.0 * cue - 1.0, 0.0), asked])

    def step(self, key, state, action, params):
        cue, time = state
        done = time == self.length - 1
        reward = jnp.where(done, action == cue, 0).astype(jnp.float32)
        last = self.show(cue, time + 1)
        moved = (last, (cue, time + 1))
        obs, state = jax.tree.map(lambda f, m: jnp.where(done, f, m), self.reset(key, params), moved)
        return obs, state, reward, done, jnp.array(False), {"final_observation": last}

    def action_space(self, params):
        return spaces.Discrete(2)


class Ticks:
    """Shows 1, then 2, and is cut there, with 3 to be seen; action 0 pays 1, and nothing terminates."""

    def reset(self, key, params):
        return jnp.ones(1), jnp.ones(())

    def step(self, key, state, action, params):
        last, cut = state + 1, state == 2
        after = jnp.where(cut, 1.0, last)
        info = {"final_observation": last[None]}
        return after[None], after, 1.0 - action, jnp.array(False), cut, info

    def action_space(self, params):
        return spaces.Discrete(2)
