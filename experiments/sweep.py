"""One program trains a grid: seeds x learning rates x clips of PPO, side by side by `vmap`.

Claim: hyperparameters are traced scalars in a learner's state, so a sweep is one compiled program and needs
neither a scheduler nor processes. CartPole-v1 by PPO; every member is the single run of its seed and
hyperparameters, in exact arithmetic. In floating point a program of another size may add in another order,
CartPole multiplies what that changes, and the member of a larger batch becomes another draw of the same run.

Measured (`python experiments/sweep.py`: 16 seeds x 4 learning rates x 4 clips, 99,840 steps each, 2 minutes
of one core for all). Of the first 64 runs 48 return otherwise among 256 than among 64, by 198 at most. Timed
earlier with `--seeds 4`, on 2 cores that were not idle: 1 run took 0.9 s after 7.7 s of compilation, 8 runs
3.4 s after 9.5 s, and 64 runs 24.8 s after 9.5 s; one after the other in fresh programs they would compile
for eight minutes. Mean return of the last 100 training episodes with its 95% bootstrap interval, and the
paired difference with its t interval:

    learning rate    clip 0.05        clip 0.1         clip 0.2         clip 0.4         0.4 less 0.05
    0.0001           207 [200, 214]   204 [197, 211]   204 [197, 211]   204 [197, 211]   -3 [-12, 6]
    0.0005           336 [319, 354]   353 [324, 381]   339 [302, 377]   320 [280, 361]   -16 [-71, 39]
    0.0025           475 [464, 485]   477 [470, 484]   461 [436, 482]   433 [408, 454]   -43 [-74, -11]
    0.0125           498 [496, 500]   497 [494, 499]   493 [481, 499]   495 [488, 500]   -3 [-9, 3]

The learning rate matters and the clip hardly: one of four intervals excludes 0, that of 0.0025, where the
widest clip returns less. At the largest rate, of which four seeds had said so, sixteen do not; at the
smallest no ratio ever leaves the three wider ones.
"""

import itertools
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import actors, envs, learner, nets, rl
from jaxrl_align.runtime import (
    MembersConfig,
    bootstrap_mean,
    cli,
    plots,
    shard_members,
    statistics,
)


@dataclass(frozen=True)
class Config(MembersConfig):
    """The grid; the defaults make 16 x 4 x 4 = 256 runs."""

    out: str = "runs/sweep"
    seeds: int = 16
    env: str = "CartPole-v1"
    """A gymnax name with discrete actions."""
    learning_rates: tuple[float, ...] = (1e-4, 5e-4, 2.5e-3, 1.25e-2)
    """Of PPO, one a member."""
    clips: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    """Of PPO, one a member."""
    num_envs: int = 4
    """Environments side by side, for each member."""
    num_steps: int = 128
    """Steps of each environment between two updates."""
    total_env_steps: int = 100_000
    """Of each member."""
    timed: tuple[int, ...] = (1, 8, 64)
    """Numbers of runs timed side by side, always the first of the grid."""


def make_grid(config: Config) -> tuple[jax.Array, rl.PPOHParams]:
    """Return a key and hyperparameters for every member; the seed varies slowest."""
    points = jnp.array(list(itertools.product(config.learning_rates, config.clips)))
    each = jax.tree.map(lambda x: jnp.full(config.seeds * len(points), x), rl.PPOHParams())
    rates, clips = jnp.tile(points, (config.seeds, 1)).T
    return jnp.repeat(config.keys(), len(points)), each._replace(learning_rate=rates, clip=clips)


def train_first(config: Config, members: int) -> dict[str, Any]:
    """Train the first members of the grid in one program; return their returns and the times it took."""
    net = nets.make_actor_critic_net(envs.num_actions(config.env))
    actor = actors.make_actor(config.env, net, num_envs=config.num_envs, num_steps=config.num_steps)
    updates = max(1, config.total_env_steps // (config.num_envs * config.num_steps))
    run = learner.train(rl.make_actor_critic(actor, segment_length=1, total_steps=updates), updates)
    final_return = lambda key, hparams: run(key, hparams)[1]["episode_return_last100"][-1]
    grid = shard_members(jax.tree.map(lambda x: x[:members], make_grid(config)))
    start = time.perf_counter()
    program = jax.jit(jax.vmap(final_return)).lower(*grid).compile()
    compiled = time.perf_counter()
    returns = np.asarray(jax.block_until_ready(program(*grid)))
    end = time.perf_counter()
    times = {"runs": members, "compile_seconds": compiled - start, "seconds": end - compiled}
    return {"returns": returns, "times": times}


def main(config: Config) -> None:
    """Train the grid, time it at several sizes, print and draw the final returns."""
    members = config.seeds * len(config.learning_rates) * len(config.clips)
    config.require(seeds=2, timed=1)
    if max(config.timed) > members:
        raise ValueError(f"timed must be at most the grid's {members} runs; got timed={config.timed}")
    envs.num_actions(config.env)
    folder = config.open_folder()
    times, found = [], {}
    for count in sorted({*config.timed, members}):
        trained = folder.once(f"runs_{count}.json", train_first, config, count)
        times.append(trained["times"])
        found[count] = np.asarray(trained["returns"])
        line = "{runs:4d} runs: {seconds:.1f} s, after {compile_seconds:.1f} s of compilation"
        print(line.format(**times[-1]), flush=True)
    for count, some in found.items():
        change = np.abs(some - found[members][:count])
        line = f"the first {count} runs, alone and among {members}: {(change > 0).sum()} return otherwise"
        print(f"{line}, by {change.max():.1f} at most")
    shape = (config.seeds, len(config.learning_rates), len(config.clips))
    returns = found[members].reshape(shape)
    print(f"return of the last 100 episodes, {config.seeds} seeds, 95% interval; columns: clip")
    print(f"  {'learning rate':14}" + "".join(f"{clip:>22g}" for clip in config.clips) + "   last less first")
    for i, rate in enumerate(config.learning_rates):
        cells = "".join(f"{bootstrap_mean(cell)!s:>22}" for cell in returns[:, i].T)
        gain = statistics.paired_interval(returns[:, i, -1], returns[:, i, 0])
        print(f"  {rate:<14g}{cells}   {gain}")
    folder.write_json("results.json", {"returns": returns, "times": times})
    how = {"title": config.env, "bars": True, "xscale": "log"}
    apart = 1.03 ** np.arange(max(shape))[:, None]  # so that the intervals do not hide each other
    x = np.array(config.learning_rates) * apart
    curves = {f"clip {clip:g}": (x[i], returns[..., i].T) for i, clip in enumerate(config.clips)}
    path, label = folder.path / "return_by_learning_rate.png", plots.RETURN_AXES[1]
    plots.save_curves(path, "learning rate", label, curves, **how)
    x = np.array(config.clips) * apart
    curves = {f"learning rate {r:g}": (x[i], returns[:, i].T) for i, r in enumerate(config.learning_rates)}
    plots.save_curves(folder.path / "return_by_clip.png", "clip", label, curves, **how)
    print(f"figures are in {folder.path}")


if __name__ == "__main__":
    cli.main(Config, main)
