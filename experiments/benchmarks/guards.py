"""What guarding a run costs: the checks, a step's metrics on the disk, and memory over a million steps.

Compares chunks of the same step, in turn in one process: alone; by `loop.run`, which checks what must be
finite; and by `loop.run` in a folder, which also writes every step's metrics and saves by the minute. A
chunk's time is that between two chunks' ends, the first two of each run, which compile, left out.

Measured (`--rounds 8 --chunks 60`, two shared CPU cores; a chunk is 10 steps of PPO with 4 members, 0.10 s;
medians of the rounds' ratios, whose range is the machine's noise): by `loop.run` 1.002 times as long [0.64,
1.49], in a folder 1.017 [0.65, 1.49]. The check itself, of a chunk's metrics and of the whole state, takes
0.1% of a chunk. In a million steps of a small learner the process grows by 0.0 MB, by `loop.run` in a folder
by 4.9 MB, the 12 MB of metrics that it returns included.
"""

import gc
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import actors, envs, nets, rl
from jaxrl_align.finite import check_finite
from jaxrl_align.learner import make_gradient_learner
from jaxrl_align.runtime import cli, loop
from jaxrl_align.runtime.folder import open_run
from jaxrl_align.types import Learner


@dataclass(frozen=True)
class Config:
    """How long, and how often."""

    rounds: int = 6
    """Every arm runs so often, in turn."""
    chunks: int = 30
    """Of a run."""
    chunk: int = 10
    """Steps of PPO between two looks at the metrics."""
    seeds: int = 4
    """Members of PPO."""
    steps: int = 1_000_000
    """Of the small learner, in whose course memory is watched."""


def make_ppo() -> Learner:
    """Return PPO on CartPole, as in `ppo_cartpole.py`."""
    net = nets.make_actor_critic_net(envs.num_actions("CartPole-v1"))
    actor = actors.make_actor("CartPole-v1", net, num_envs=8, num_steps=128)
    return rl.make_actor_critic(actor, segment_length=1, epochs=4, minibatches=4, total_steps=10_000)


def make_line() -> Learner:
    """Return a learner of three weights."""

    def loss(params: Any, frozen: Any, batch: jax.Array, key: Any, hparams: Any) -> tuple[jax.Array, Any]:
        return jnp.mean((batch @ params["w"] - 1.0) ** 2), {}

    draw = lambda key: jax.random.normal(key, (8, 3))
    return make_gradient_learner(lambda key: {"w": jax.random.normal(key, (3,))}, loss, draw)


def chunk_seconds(step: Callable[[Any], Any], state: Any, config: Config, arm: str) -> float:
    """Return the median seconds of a chunk under one arm: "alone", "loop" or "folder"."""
    ends: list[float] = []
    note = lambda *_: ends.append(time.perf_counter())
    count = config.chunk * config.chunks
    if arm == "alone":
        advance = jax.jit(
            lambda s: jax.lax.scan(lambda s, _: step(s), s, None, config.chunk), donate_argnums=0
        )
        state = jax.tree.map(jnp.copy, state)
        for _ in range(config.chunks):
            state, metrics = advance(state)
            jax.device_get(metrics)
            note()
    else:
        with tempfile.TemporaryDirectory() as scratch:
            folder = open_run(Path(scratch) / "run", {}) if arm == "folder" else None
            how = {"chunk": config.chunk, "folder": folder, "progress": False, "on_chunk": note}
            loop.run(step, state, count, **how)
    return float(np.median(np.diff(ends)[2:]))


def resident() -> int:
    """Return the bytes that this process holds now (Linux)."""
    gc.collect()
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text("ascii"))
    return 1024 * int(found[1]) if found else 0


def watch_memory(config: Config) -> None:
    """Print how the process grows in many steps of a learner, by a compiled loop and by `loop.run`."""
    learner = make_line()
    state = learner.init(jax.random.key(0), rl.PPOHParams())
    advance = jax.jit(lambda s: jax.lax.scan(lambda s, _: (learner.step(s)[0], None), s, None, 1_000)[0])
    for _ in range(20):
        state = advance(state)
    before = resident()
    for _ in range(config.steps // 1_000):
        state = jax.block_until_ready(advance(state))
    print(f"{config.steps:,} steps, the learner alone: {(resident() - before) / 1e6:+.1f} MB")
    with tempfile.TemporaryDirectory() as scratch:
        marks: list[int] = []
        note = lambda done, *_: marks.append(resident()) if done in (20_000, config.steps) else None
        how = {"chunk": 1_000, "progress": False, "on_chunk": note}
        _, history = loop.run(learner.step, state, config.steps, folder=open_run(scratch, {}), **how)
    kept = sum(values.nbytes for values in history.values())
    grown = (marks[-1] - marks[0]) / 1e6
    print(f"the same by loop.run in a folder: {grown:+.1f} MB, its history ({kept / 1e6:.1f} MB) included")


def check_seconds(step: Callable[[Any], Any], state: Any, config: Config) -> float:
    """Return the median seconds of the check of a chunk's metrics and of the state, as before a save."""
    state, metrics = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s), s, None, config.chunk))(state)
    metrics, seconds = jax.device_get(metrics), []
    for _ in range(100):
        begin = time.perf_counter()
        check_finite(state, metrics)
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


def main(config: Config) -> None:
    """Print what the guards cost, and how memory grows."""
    learner = make_ppo()
    keys = jax.random.split(jax.random.key(0), config.seeds)
    state = jax.jit(jax.vmap(learner.init, (0, None)))(keys, rl.PPOHParams())
    step = jax.vmap(learner.step)
    arms = ("alone", "loop", "folder")
    seconds = np.array(
        [[chunk_seconds(step, state, config, arm) for arm in arms] for _ in range(config.rounds)]
    )
    print(f"a chunk of {config.chunk} steps of PPO, {config.seeds} members: {np.median(seconds[:, 0]):.3f} s")
    share = check_seconds(step, state, config) / np.median(seconds[:, 0])
    print(f"the check of a chunk's metrics and of the state takes {100 * share:.2f}% of that")
    for i, arm in enumerate(arms[1:], start=1):
        ratio = seconds[:, i] / seconds[:, 0]
        print(
            f"by loop.run{' in a folder' * (arm == 'folder')}: {np.median(ratio):.3f} times as long", end=" "
        )
        print(f"[{ratio.min():.3f}, {ratio.max():.3f}] over {config.rounds} rounds")
    watch_memory(config)


if __name__ == "__main__":
    cli.main(Config, main)
