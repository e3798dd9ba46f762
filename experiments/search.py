"""Search plus network against the network alone; learning from search against learning from rewards.

Planning on a model with a policy and a value network improves the policy (the lectures' closing chapter;
Anthony et al. 2017; Silver et al. 2018), so a network that was trained too briefly may play better with a few
simulations a move, and one that is trained towards its own plans may learn from fewer steps. The worlds are
random decision processes with certain transitions and normal rewards, each its own "seed", whose optimal
policy is known by value iteration. Two networks get the same few steps in each: one by PPO, one by expert
iteration (a search at every state of a rollout). Both are then played alone, greedily, and with searches.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import actors, envs, nets, rl, runtime
from jaxrl_align.learner import train
from jaxrl_align.runtime import cli, plots
from jaxrl_align.types import MDP

CLAIM = runtime.Claim(
    "A network that was trained too briefly plays better with a search on top, and one that is trained "
    "towards its own plans learns more from the same steps than from rewards alone.",
    rows=("B29",),
    minutes=0.5,
)
WAYS = ("PPO", "expert iteration")
"""The ways of training a network."""

Model = Callable[[jax.Array, jax.Array], tuple[jax.Array, float, jax.Array]]


@dataclass(frozen=True)
class Config(runtime.MembersConfig):
    """Networks that were trained too briefly, alone and with search."""

    out: str = "runs/search"
    seeds: int = 24
    """Decision processes; the intervals are over them."""
    states: int = 100
    """Of each process."""
    actions: int = 4
    """Of each process."""
    gamma: float = 0.95
    """The discount of a step."""
    horizon: int = 50
    """Steps of an episode, which is cut then."""
    updates: int = 10
    """Rollouts of 8 environments x 64 steps for either way of training."""
    learning_rate: float = 1e-3
    """Of Adam."""
    training_simulations: int = 16
    """Of expert iteration."""
    simulations: tuple[int, ...] = (4, 16, 64)
    """A move, when playing."""
    episodes: int = 16
    """Played in each process in each way, from the same starts."""


def make_process(key: jax.Array, config: Config) -> tuple[MDP, Model]:
    """Draw a decision process with certain transitions; return it as arrays and as a model."""
    key_next, key_reward = jax.random.split(key)
    states, actions = config.states, config.actions
    after = jax.random.randint(key_next, (states, actions), 0, states)
    reward = jax.random.normal(key_reward, (states, actions))
    every_reward = jnp.broadcast_to(reward[..., None], (states, actions, states))
    uniform, never = jnp.full(states, 1.0 / states), jnp.zeros(states, bool)
    mdp = MDP(jax.nn.one_hot(after, states), every_reward, jnp.float32(config.gamma), uniform, never)
    return mdp, lambda state, action: (reward[state, action], 1.0, after[state, action])


def one_hot_net(config: Config) -> nets.Net:
    """Return a perceptron that reads a state's number as a unit vector."""
    net = nets.make_actor_critic_net(config.actions)
    read = lambda state: jax.nn.one_hot(state, config.states)
    init = lambda key, state: net.init(key, read(state))
    return nets.Net(init, lambda params, state: net.apply(params, read(state)))


def play(key: jax.Array, config: Config, way: str) -> jax.Array:
    """Train in one process; return the mean returns alone, with each search, and of the optimal policy."""
    key_process, key_train, key_play = jax.random.split(key, 3)
    mdp, model = make_process(key_process, config)
    env, net = envs.make_tabular_environment(mdp, config.horizon), one_hot_net(config)
    actor = actors.make_actor(env, net, num_envs=8, num_steps=64)
    if way == "PPO":
        learner = rl.make_actor_critic(actor, segment_length=1)
        hparams = rl.PPOHParams(config.learning_rate, config.gamma)
    else:
        learner = rl.make_search_learner(actor, net.apply, model, simulations=config.training_simulations)
        hparams = rl.SearchHParams(config.learning_rate, config.gamma)
    params = train(learner, config.updates)(key_train, hparams)[0].params

    def expand(state: jax.Array, action: jax.Array) -> rl.Leaf:
        reward, goes_on, after = model(state, action)
        return rl.Leaf(reward, config.gamma * goes_on, after, *net.apply(params, after))

    def plan(key: jax.Array, state: jax.Array, simulations: int) -> jax.Array:
        root = rl.Leaf(0.0, 1.0, state, *net.apply(params, state))
        return rl.search(None, root, expand, simulations=simulations).action

    best = jnp.argmax(rl.value_iteration(mdp).q, axis=-1).astype(jnp.int32)
    policies = [actors.greedy(net, params)]
    policies += [functools.partial(plan, simulations=size) for size in config.simulations]
    policies += [lambda key, state: best[state]]
    size = {"num_episodes": config.episodes, "max_steps": config.horizon}
    returns = [envs.evaluate_policy(env, policy, key_play, **size).episode_return for policy in policies]
    return jnp.mean(jnp.stack(returns), axis=-1)


ALONE, GAIN, SHARE = "alone", "gain over the network alone, paired", "share of the optimal return"


def tabulate(config: Config, shares: dict[str, np.ndarray]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return a table for each way of training, of its shares [processes, 1 + simulations]."""
    names = [ALONE, *(f"{n} simulations a move" for n in config.simulations)]
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for way, share in shares.items():
        tables[way] = {name: {SHARE: runtime.t_interval(x)} for name, x in zip(names, share.T, strict=True)}
        for name, x in zip(names[1:], share.T[1:], strict=True):
            tables[way][name][GAIN] = runtime.paired_interval(x, share[:, 0])
    return tables


def lead(shares: dict[str, np.ndarray]) -> runtime.Interval:
    """Return what the last way's network alone has more than the first's, paired by process."""
    first, *_, last = shares.values()
    return runtime.paired_interval(last[:, 0], first[:, 0])


def judge(tables: dict[str, dict[str, dict[str, Any]]], ahead: runtime.Interval) -> dict[str, bool]:
    """Return which parts of the claim are shown, by the fewest and the most simulations.

    Args:
      tables: of `tabulate`.
      ahead: of `lead`.
    """
    checks = {}
    for way, table in tables.items():
        _, *searched = table
        for name in dict.fromkeys((searched[0], searched[-1])):
            checks[f"{name} gain on the network trained by {way}"] = table[name][GAIN].low > 0
    first, *_, last = tables
    return checks | {f"the network alone is better trained by {last} than by {first}": ahead.low > 0}


def main(config: Config) -> None:
    """Train and play in every process, draw and write each way's share of the optimal return."""
    config.require(seeds=2, updates=1, simulations=1)
    folder = config.open_folder()
    keys = runtime.shard_members(config.keys())
    shares = {}
    for way in WAYS:
        run = jax.jit(jax.vmap(functools.partial(play, config=config, way=way)))
        found = folder.once(f"{way.replace(' ', '_')}.json", run, keys)
        returns = np.asarray(found, np.float32)
        shares[way] = returns[:, :-1] / returns[:, -1:]
    places = range(1 + len(config.simulations))
    plots.save_curves(
        folder.path / "search.png",
        "simulations a move",
        SHARE,
        {f"trained by {way}": (places, share.T) for way, share in shares.items()},
        title=f"{config.seeds} random decision processes",
        bars=True,
        bounds=(-np.inf, 1),
        xticks=places,
        xticklabels=["none", *map(str, config.simulations)],
    )
    tables, ahead, (first, last) = tabulate(config, shares), lead(shares), WAYS
    most = f"{config.simulations[-1]} simulations a move"
    runtime.write_result(
        folder,
        config,
        CLAIM,
        headline={
            f"gain in the share of the optimal return by {most}, after {first}": tables[first][most][GAIN],
            f"{last} less {first}, the networks alone, paired": ahead,
        },
        baselines={f"{SHARE}, {first} alone": tables[first][ALONE][SHARE]},
        checks=judge(tables, ahead),
        tables={f"trained by {way}": table for way, table in tables.items()},
        figures=["search.png"],
    )


if __name__ == "__main__":
    cli.main(Config, main)
