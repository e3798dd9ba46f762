"""Finite decision processes as environments with the gymnax interface, and two of them to learn on."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.envs.registry import spaces
from jaxrl_align.types import MDP


def make_mdp(
    transition: Any,
    reward: Any,
    gamma: float,
    *,
    start: Any = None,
    terminal: Any = None,
) -> MDP:
    """Check a finite decision process and return it.

    Args:
      transition: [S, A, S], every row a distribution.
      reward: [S, A, S], or [S, A] where the next state does not matter.
      gamma: discount in [0, 1).
      start: [S] distribution of the first state; default always state 0.
      terminal: [S] bool; such a state absorbs and pays nothing, whatever its rows say.

    Raises:
      ValueError: for shapes that do not fit, rows that are no distributions, a reward that is not finite or a
        discount outside [0, 1).
    """
    transition, reward = np.asarray(transition, np.float64), np.asarray(reward, np.float64)
    if transition.ndim != 3 or transition.shape[0] != transition.shape[2] or 0 in transition.shape:
        raise ValueError(f"transition must be [S, A, S]; got shape {transition.shape}")
    states, actions, _ = transition.shape
    if reward.shape == (states, actions):
        reward = np.repeat(reward[:, :, None], states, axis=2)
    if reward.shape != transition.shape:
        raise ValueError(
            f"reward must be [S, A, S] or [S, A] with S={states}, A={actions}; got shape {reward.shape}"
        )
    start = np.eye(states)[0] if start is None else np.asarray(start, np.float64)
    terminal = np.zeros(states, bool) if terminal is None else np.asarray(terminal, bool)
    if start.shape != (states,) or terminal.shape != (states,):
        raise ValueError(f"start and terminal must be [{states}]; got {start.shape} and {terminal.shape}")
    for name, rows in {"transition": transition, "start": start}.items():
        wrong = ~(np.abs(rows.sum(-1) - 1.0) < 1e-5) | (rows < 0).any(-1)
        if wrong.any():
            where = np.argwhere(wrong)[0].tolist()
            raise ValueError(
                f"{name}{where} must be probabilities that sum to 1; got a sum of {rows[tuple(where)].sum()} "
                f"and a smallest entry of {rows[tuple(where)].min()}; divide by the sum"
            )
    if not np.isfinite(reward).all():
        raise ValueError(f"rewards must be finite; got {reward[~np.isfinite(reward)][0]}")
    if not 0.0 <= gamma < 1.0:
        raise ValueError(f"gamma must be in [0, 1); got {gamma}; 0.99 looks about 100 steps ahead")
    absorbing = np.broadcast_to(np.eye(states)[:, None], transition.shape)
    transition = np.where(terminal[:, None, None], absorbing, transition)
    reward = np.where(terminal[:, None, None], 0.0, reward)
    return MDP(*map(jnp.asarray, (transition, reward, gamma, start, terminal)))


class TabularState(NamedTuple):
    """A process between two steps."""

    position: jax.Array
    """[] int32."""
    time: jax.Array
    """[] int32 steps since the start."""


class TabularParams(NamedTuple):
    """A process and its time limit."""

    mdp: MDP
    max_steps: Any = 100
    """An episode is truncated, not terminated, after this many steps."""


class TabularEnv:
    """A finite decision process with gymnax's interface; the observation is the state's number."""

    def __init__(self, num_actions: int):
        self.num_actions = num_actions

    def reset(self, key: chex.PRNGKey, params: TabularParams) -> tuple[jax.Array, TabularState]:
        """Draw a first state; return (observation, state)."""
        position = jax.random.categorical(key, jnp.log(params.mdp.start)).astype(jnp.int32)
        return position, TabularState(position, jnp.zeros((), jnp.int32))

    def step(
        self, key: chex.PRNGKey, state: TabularState, action: jax.Array, params: TabularParams
    ) -> tuple[jax.Array, TabularState, jax.Array, jax.Array, jax.Array, dict[str, Any]]:
        """Return (observation, state, reward, terminated, truncated, info), reset where the episode ended."""
        key_step, key_reset = jax.random.split(key)
        mdp, position = params.mdp, state.position
        after = jax.random.categorical(key_step, jnp.log(mdp.transition[position, action]))
        after = after.astype(jnp.int32)
        terminated = mdp.terminal[after]
        truncated = state.time + 1 >= params.max_steps
        moved = (after, TabularState(after, state.time + 1))
        fresh = self.reset(key_reset, params)
        obs, state = jax.tree.map(lambda f, m: jnp.where(terminated | truncated, f, m), fresh, moved)
        info = {"final_observation": after, "terminated": terminated, "truncated": truncated}
        return obs, state, mdp.reward[position, action, after], terminated, truncated, info

    def action_space(self, params: TabularParams | None = None) -> Any:
        """Return the actions 0 ... A - 1."""
        return spaces.Discrete(self.num_actions)


def make_tabular_environment(mdp: MDP, max_steps: int = 100) -> tuple[TabularEnv, TabularParams]:
    """Return the pair (environment, params) that every actor takes.

    Args:
      mdp: from `make_mdp`.
      max_steps: time limit of an episode, which truncates.

    Raises:
      ValueError: if the limit is below 1.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1; got {max_steps}")
    return TabularEnv(mdp.transition.shape[1]), TabularParams(mdp, max_steps)


def random_mdp(key: chex.PRNGKey, states: int, actions: int, gamma: float = 0.9) -> MDP:
    """Draw a process without an end: Dirichlet(1) rows, standard normal rewards, a uniform start."""
    key_transition, key_reward = jax.random.split(key)
    # Exponentials over their sum are Dirichlet(1), and compile in a fraction of the time.
    mass = jax.random.exponential(key_transition, (states, actions, states))
    transition = mass / jnp.sum(mass, -1, keepdims=True)
    reward = jax.random.normal(key_reward, (states, actions))
    return make_mdp(transition, reward, gamma, start=jnp.full(states, 1.0 / states))


LAKE = ("SFFF", "FHFH", "FFFH", "HFFG")


def frozen_lake(rows: Sequence[str] = LAKE, *, success_rate: float = 1.0 / 3.0, gamma: float = 0.99) -> MDP:
    """Build gymnasium's FrozenLake as arrays: left, down, right, up; 1 for reaching G, 0 otherwise.

    Args:
      rows: the map, of S (start), F (frozen), H (hole) and G (goal).
      success_rate: probability that a move goes where it was meant to; else it goes to either side, evenly.
      gamma: discount.

    Returns:
      An `MDP` whose holes and goal are terminal; states are numbered row by row.

    Raises:
      ValueError: for rows of several lengths, another tile, no start or several, or for what `make_mdp`
        refuses.
    """
    flat = [tile for row in rows for tile in row]
    if len({len(row) for row in rows}) != 1 or not set(flat) <= set("SFHG") or flat.count("S") != 1:
        raise ValueError(
            f"a map must be rows of one length, of the tiles S, F, H and G, one of them S; got {list(rows)}"
        )
    tiles = np.array([list(row) for row in rows])
    height, width = tiles.shape
    flat, states = tiles.ravel(), tiles.size
    moves = ((0, -1), (1, 0), (0, 1), (-1, 0))
    transition = np.zeros((states, 4, states))
    for state in range(states):
        for action in range(4):
            for turn, probability in (
                (0, success_rate),
                (-1, (1 - success_rate) / 2),
                (1, (1 - success_rate) / 2),
            ):
                down, right = moves[(action + turn) % 4]
                row = np.clip(state // width + down, 0, height - 1)
                column = np.clip(state % width + right, 0, width - 1)
                transition[state, action, row * width + column] += probability
    reward = np.broadcast_to(flat == "G", transition.shape).astype(float)
    return make_mdp(transition, reward, gamma, start=flat == "S", terminal=(flat == "H") | (flat == "G"))
