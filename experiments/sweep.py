"""One program trains a grid: seeds x learning rates x clips of PPO, side by side by `vmap`.

Hyperparameters are traced scalars in a learner's state, so a sweep is one compiled program and needs neither
a scheduler nor processes. Every member is the single run of its seed and hyperparameters in exact arithmetic.
In floating point a program of another size may add in another order; CartPole multiplies what that changes,
and the member of a larger batch becomes another draw of the same run. So single returns may differ between
programs of different sizes, and their means are to agree.

The times are those of one run of this script: each program is compiled and run once.
"""

import itertools
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import returns

from jaxrl_align import actors, envs, learner, nets, rl, runtime
from jaxrl_align.runtime import MembersConfig, cli, plots, shard_members

CLAIM = runtime.Claim(
    "A sweep is one program: hyperparameters are numbers in a learner's state, so that a grid of runs "
    "compiles once, costs less than its runs one after the other, and returns what they return.",
    minutes=2,
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


COMPILED, SECONDS, APART = "running, a run", "both, a run", "among all less alone, paired"
LEVEL = 0.05
"""The share of the mean return that means of programs of two sizes may be apart."""


def tabulate_times(times: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what the programs took, by their number of runs."""
    return {
        f"{row['runs']} run{'s' * (row['runs'] != 1)}": {
            "compiling": row["compile_seconds"],
            "running": row["seconds"],
            COMPILED: row["seconds"] / row["runs"],
            SECONDS: (row["compile_seconds"] + row["seconds"]) / row["runs"],
        }
        for row in times
    }


def tabulate_alone(config: Config, found: dict[int, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return how the first runs differ between a program of their own and that of all, by their number."""
    rows = {}
    *sizes, members = sorted(found)
    for count in sizes:
        among = found[members][:count]
        rows["the first run" if count == 1 else f"the first {count} runs"] = {
            "return otherwise": int((found[count] != among).sum()),
            "by at most": float(np.abs(found[count] - among).max()),
            "mean return alone": float(found[count].mean()),
            APART: runtime.paired_interval(among, found[count], bounds=returns.difference_range(config.env)),
        }
    return rows


def tabulate_grid(config: Config, final: np.ndarray) -> dict[str, dict[str, runtime.Interval]]:
    """Return the returns [seeds, rates, clips] by rate and clip, and the last clip's less the first's."""
    paired = f"{config.clips[-1]:g} less {config.clips[0]:g}, paired"
    bounds = returns.difference_range(config.env)
    table = {}
    for rate, x in zip(config.learning_rates, final.swapaxes(0, 1), strict=True):
        cells = zip(config.clips, x.T, strict=True)
        table[f"rate {rate:g}"] = row = {f"clip {clip:g}": runtime.bootstrap_mean(y) for clip, y in cells}
        row[paired] = runtime.paired_interval(x[:, -1], x[:, 0], bounds=bounds)
    return table


def judge(times: dict[str, dict[str, Any]], alone: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Return which parts of the claim the tables of times and of runs alone show."""
    (few, slow), *_, (many, fast) = times.items()
    checks = {
        f"a run takes less time in a program of {many} than in one of {few}": fast[SECONDS] < slow[SECONDS],
        "and where both are compiled already": fast[COMPILED] < slow[COMPILED],
    }
    for name, row in alone.items():
        checks[f"{name}: no return differs between the two programs"] = not row["return otherwise"]
    name, row = list(alone.items())[-1]
    near = LEVEL * abs(row["mean return alone"])
    text = f"{name}: the two programs' means are less than {LEVEL:.0%} apart"
    return checks | {text: -near < row[APART].low <= row[APART].high < near}


def draw(config: Config, folder: runtime.RunFolder, final: np.ndarray) -> list[str]:
    """Draw the returns [seeds, rates, clips] by learning rate and by clip; return the files' names."""
    how = {"title": config.env, "bars": True, "xscale": "log", "bounds": returns.return_range(config.env)}
    apart = 1.03 ** np.arange(max(final.shape))[:, None]  # so that the intervals do not hide each other
    x = np.array(config.learning_rates) * apart
    curves = {f"clip {clip:g}": (x[i], final[..., i].T) for i, clip in enumerate(config.clips)}
    names, label = ["return_by_learning_rate.png", "return_by_clip.png"], plots.RETURN_AXES[1]
    plots.save_curves(folder.path / names[0], "learning rate", label, curves, **how)
    ticks = {"xticks": config.clips, "xticklabels": config.clips}
    x = np.array(config.clips) * apart
    curves = {f"learning rate {r:g}": (x[i], final[:, i].T) for i, r in enumerate(config.learning_rates)}
    plots.save_curves(folder.path / names[1], "clip", label, curves, **how, **ticks)
    return names


def main(config: Config) -> None:
    """Train the grid, time it at several sizes, draw and write the final returns."""
    members = config.seeds * len(config.learning_rates) * len(config.clips)
    config.require(seeds=2, timed=1)
    if max(config.timed) > members:
        raise ValueError(f"timed must be at most the grid's {members} runs; got timed={config.timed}")
    if min(config.timed) == members:
        raise ValueError(
            f"timed must hold a number below the grid's {members} runs; got timed={config.timed}"
        )
    envs.num_actions(config.env)
    folder = config.open_folder()
    times, found = [], {}
    for count in sorted({*config.timed, members}):
        trained = folder.once(f"runs_{count}.json", train_first, config, count)
        times.append(trained["times"])
        found[count] = np.asarray(trained["returns"])
        line = "{runs:4d} runs: {seconds:.1f} s, after {compile_seconds:.1f} s of compilation"
        print(line.format(**times[-1]), flush=True)
    final = found[members].reshape(config.seeds, len(config.learning_rates), len(config.clips))
    figures = draw(config, folder, final)
    took, alone = tabulate_times(times), tabulate_alone(config, found)
    most, row = list(alone.items())[-1]
    runtime.write_result(
        folder,
        config,
        CLAIM,
        headline={f"return of {most} among all {members} less alone, paired": row[APART]},
        checks=judge(took, alone),
        tables={
            "what the programs took [s]": took,
            f"runs in a program of their own and among all {members}": alone,
            "return of the last 100 episodes": tabulate_grid(config, final),
        },
        figures=figures,
    )


if __name__ == "__main__":
    cli.main(Config, main)
