"""Tabular Q-learning and DQN against the exact Q* of FrozenLake and of a random process.

Both learn from an epsilon-greedy player's steps without knowing the process: a table, whose rates are Robbins
and Monro's, and a neural network in the table's place. Q* comes from policy iteration, whose values are a
linear solve, and value iteration must agree with it. The distance is |Q - Q*| / |Q*| over all states that act
and all actions, 1 for a Q of zeros. The greedy policy's value is exact too, and V* that of the start.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import envs, runtime
from jaxrl_align.actors.value import make_value_actor
from jaxrl_align.nets.q_networks import make_q_net, make_table
from jaxrl_align.rl.dqn import DQNHParams, make_dqn
from jaxrl_align.rl.dynamic_programming import (
    QLearningHParams,
    make_q_learning,
    policy_iteration,
    solve_policy,
    value_iteration,
)
from jaxrl_align.runtime import cli, plots
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import MembersConfig, train_members
from jaxrl_align.types import MDP, Actor, Learner

CLAIM = runtime.Claim(
    "Q-learning finds the optimal action values without knowing the process: from a table, and from a neural "
    "network in the table's place.",
    rows=("A3", "A4", "A5", "A7", "A16"),
    minutes=1,
)


@dataclass(frozen=True)
class Config(MembersConfig):
    """Both learners play epsilon-greedily in the same number of environments, for as many steps."""

    out: str = "runs/value_iteration"
    seed: int = 0
    """The key of the members and of the random process."""
    states: int = 20
    """Of the random process."""
    actions: int = 4
    """Of the random process."""
    gamma: float = 0.95
    """The discount of a step."""
    num_envs: int = 8
    """Environments side by side, for each member."""
    total_env_steps: int = 400_000
    """Of each member and learner."""
    epsilon: float = 0.5
    """Share of random actions."""
    decay: float = 0.6
    """The table's n-th visit learns at the rate n^-decay."""
    learning_rate: float = 2e-3
    """DQN's at the start; it falls linearly to 0."""
    hidden: int = 64
    """Units of the hidden layer."""
    batch_size: int = 64
    """Transitions of a gradient step."""
    target_period: int = 100
    """Gradient steps between two copies of the target net."""


def with_error(learner: Learner, table: Callable[[Any], jax.Array], mdp: MDP, exact: jax.Array) -> Learner:
    """Return the learner with one more metric: `error`, |Q - Q*| / |Q*| over the states that act."""
    acts = ~mdp.terminal[:, None]

    def step(state: Any, batch: Any = None, frozen: Any = None) -> Any:
        state, metrics = learner.step(state, batch, frozen)
        difference = jnp.where(acts, table(state.params) - exact, 0.0)
        error = jnp.linalg.norm(difference) / jnp.linalg.norm(jnp.where(acts, exact, 0.0))
        return state, {"error": error, "td_error": metrics["td_error"]}

    return learner._replace(step=step)


def make_learners(config: Config, mdp: MDP) -> dict[str, tuple[Learner, Any, Callable]]:
    """Return by name: the learner, its hparams, and `params -> Q [S, A]`."""
    states, actions = mdp.transition.shape[:2]
    one_hot = lambda s: jax.nn.one_hot(s, states)

    def actor(net: Any, **preprocess: Any) -> Actor:
        world = envs.make_tabular_environment(mdp)
        return make_value_actor(world, net, num_envs=config.num_envs, num_steps=1, **preprocess)

    net = make_q_net(actions, (config.hidden,))
    steps = max(1, config.total_env_steps // config.num_envs)
    dqn = make_dqn(
        actor(net, preprocess=one_hot),
        capacity=steps * config.num_envs,
        batch_size=config.batch_size,
        warmup_steps=config.batch_size,
        total_steps=steps,
    )
    deep = DQNHParams(
        learning_rate=config.learning_rate,
        gamma=config.gamma,
        epsilon_start=config.epsilon,
        epsilon_end=config.epsilon,
        target_period=config.target_period,
    )
    flat = QLearningHParams(decay=config.decay, gamma=config.gamma, epsilon=config.epsilon)
    return {
        "tabular": (make_q_learning(actor(make_table(states, actions))), flat, lambda q: q),
        "DQN": (dqn, deep, lambda params: jax.vmap(net.apply, (None, 0))(params, jnp.eye(states))),
    }


def learn(
    config: Config, name: str, mdp: MDP, exact: jax.Array, folder: RunFolder
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Train both learners; return each one's error [steps, M] and its greedy policy's exact value [M]."""
    errors, values = {}, {}
    for kind, (learner, hparams, table) in make_learners(config, mdp).items():
        learner = with_error(learner, table, mdp, exact)
        steps = max(1, config.total_env_steps // config.num_envs)
        how = {"folder": folder.sub(f"{name}_{kind}"), "label": f"{name}, {kind}", "show": ("error",)}
        trained = train_members(learner, hparams, config, steps, **how)
        greedy = jax.nn.one_hot(jnp.argmax(jax.vmap(table)(trained.state.params), -1), exact.shape[1])
        errors[kind] = trained.history["error"]
        values[kind] = np.asarray(jax.vmap(solve_policy, (None, 0))(mdp, greedy) @ mdp.start)
    return errors, values


LEARNT, SOLVED = "after learning", "the exact solutions"
ERROR, LACKS = "|Q - Q*| / |Q*|", "its greedy policy lacks of V* [%]"
APART = "value iteration is off by at most"


def tabulate_learnt(exact: jax.Array, mdp: MDP, errors: dict, values: dict) -> dict[str, dict[str, Any]]:
    """Return the rows of both learners in one process."""
    best = float(exact.max(1) @ mdp.start)
    return {
        kind: {
            ERROR: runtime.t_interval(error[-1], bounds=(0, np.inf)),
            LACKS: runtime.bootstrap_mean(100 * np.maximum(best - values[kind], 0.0) / abs(best)),
            "distance after the first step": runtime.t_interval(error[0], bounds=(0, np.inf)),
        }
        for kind, error in errors.items()
    }


def tabulate_solved(exact: jax.Array, mdp: MDP) -> dict[str, Any]:
    """Return the row of one process: its value, and how far value iteration is from the linear solve."""
    swept = value_iteration(mdp)
    return {
        "V*(start)": float(exact.max(1) @ mdp.start),
        APART: float(jnp.abs(swept.q - exact).max()),
        "sweeps": int(swept.iterations),
    }


def judge(tables: dict[str, dict[str, dict[str, Any]]]) -> dict[str, bool]:
    """Return which parts of the claim the tables show."""
    checks = {}
    for name, row in tables[LEARNT].items():
        checks[f"{name}: Q comes within a tenth of Q*"] = row[ERROR].high < 0.1
        checks[f"{name}: its greedy policy lacks less than 5% of V*"] = row[LACKS].high < 5
    agree = all(row[APART] < 1e-4 for row in tables[SOLVED].values())
    return checks | {"value iteration agrees with the linear solve within 1e-4": agree}


def draw(config: Config, name: str, errors: dict[str, np.ndarray], folder: RunFolder) -> str:
    """Draw the distances in one process; return the file's name."""
    curves = {}
    for kind, error in errors.items():
        at = np.unique(np.geomspace(1, len(error), 200).astype(int))
        curves[f"{kind}, {config.seeds} seeds, 95% interval"] = (at * config.num_envs, error[at - 1])
    file = f"{name.replace(' ', '_')}.png"
    labels = ("environment steps per seed", ERROR)
    plots.save_curves(
        folder.path / file, *labels, curves, title=name, bounds=(0, np.inf), xscale="log", yscale="log"
    )
    return file


def main(config: Config) -> None:
    """Solve, learn, compare, and draw each process's errors."""
    drawn = envs.random_mdp(jax.random.key(config.seed), config.states, config.actions, config.gamma)
    processes = {"FrozenLake": envs.frozen_lake(gamma=config.gamma), "random process": drawn}
    folder = config.open_folder()
    tables: dict[str, dict[str, dict[str, Any]]] = {LEARNT: {}, SOLVED: {}}
    figures = []
    for name, mdp in processes.items():
        exact = jax.jit(policy_iteration)(mdp).q
        errors, values = learn(config, name, mdp, exact, folder)
        rows = tabulate_learnt(exact, mdp, errors, values)
        tables[LEARNT] |= {f"{name}, {kind}": row for kind, row in rows.items()}
        tables[SOLVED][name] = tabulate_solved(exact, mdp)
        figures.append(draw(config, name, errors, folder))
    runtime.write_result(
        folder,
        config,
        CLAIM,
        headline={
            f"{ERROR} on FrozenLake, {kind}": tables[LEARNT][f"FrozenLake, {kind}"][ERROR] for kind in errors
        },
        checks=judge(tables),
        tables=tables,
        figures=figures,
    )


if __name__ == "__main__":
    cli.main(Config, main)
