"""Tabular Q-learning and DQN against the exact Q* of FrozenLake and of a random process.

Claim (lecture 000): Q-learning finds Q* without knowing the process, from a table (with Robbins and Monro's
rates) and with a neural network in the table's place. Q* comes from policy iteration, whose values are a
linear solve, and value iteration must agree with it.

Measured (`python experiments/value_iteration.py`: 8 seeds, 400,000 steps each at epsilon 0.5, gamma 0.95;
mean and 95% t interval; under a minute of 2 CPU cores): on FrozenLake |Q - Q*| / |Q*| falls to 0.044 +- 0.009
with the table and 0.026 +- 0.009 with DQN, on a random process of 20 states to 0.006 +- 0.003 and 0.003 +-
0.001. The greedy policies earn, as shares of V*(start) with 95% bootstrap intervals, the table's 0.989
[0.966, 1] and 0.9992 [0.9984, 0.9998], DQN's 1 on all seeds and 0.9998 [0.9994, 1]. Value iteration and the
linear solve agree within 1.1e-5 and 3.8e-6.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import envs
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
from jaxrl_align.runtime import cli, plots, statistics
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import MembersConfig, train_members
from jaxrl_align.runtime.resampling import bootstrap_mean
from jaxrl_align.types import MDP, Actor, Learner


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


def report(name: str, mdp: MDP, exact: jax.Array, errors: dict, values: dict) -> dict[str, Any]:
    """Print and return the last errors and the greedy policies' values, with intervals over members."""
    best = float(exact.max(1) @ mdp.start)
    swept = value_iteration(mdp)
    print(f"{name}: V*(start) = {best:.4f}; value iteration agrees within", end=" ")
    print(f"{float(jnp.abs(swept.q - exact).max()):.1e} after {int(swept.iterations)} sweeps")
    result = {"optimal_value": best}
    for kind, error in errors.items():
        share = values[kind] / best
        print(f"  {kind:8} |Q - Q*| / |Q*| = {statistics.mean_text(error[-1], '.4f')};", end=" ")
        print(f"its greedy policy earns {bootstrap_mean(share)} of V*")
        result[kind] = {"error": error[-1], "share_of_optimum": share}
    return result


def main(config: Config) -> None:
    """Solve, learn, compare, and draw each process's errors."""
    drawn = envs.random_mdp(jax.random.key(config.seed), config.states, config.actions, config.gamma)
    processes = {"FrozenLake": envs.frozen_lake(gamma=config.gamma), "random process": drawn}
    folder = config.open_folder()
    results = {}
    for name, mdp in processes.items():
        exact = jax.jit(policy_iteration)(mdp).q
        errors, values = learn(config, name, mdp, exact, folder)
        results[name] = report(name, mdp, exact, errors, values)
        curves = {}
        for kind, error in errors.items():
            at = np.unique(np.geomspace(1, len(error), 200).astype(int))
            label = f"{kind}, {config.seeds} seeds, 95% interval"
            curves[label] = (at * config.num_envs, error[at - 1])
        path = folder.path / f"{name.replace(' ', '_')}.png"
        labels = ("environment steps per seed", "|Q - Q*| / |Q*|")
        plots.save_curves(path, *labels, curves, title=name, xscale="log", yscale="log")
    folder.write_json("result.json", results)
    print(f"figures and result.json are in {folder.path}")


if __name__ == "__main__":
    cli.main(Config, main)
