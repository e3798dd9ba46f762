"""Our PPO's environment steps a second on CartPole against purejaxrl's and rejax's, in turn in one run.

Claim: at equal configuration (128 steps of 4 or 64 environments, 4 epochs of 4 minibatches, two 64-64 tanh
networks) at least 1.3 times either, for one seed and for 8.

Measured (`python experiments/benchmarks/rl.py --timesteps 65536 --rejax PYTHON --purejaxrl PYTHON
--purejaxrl-folder FOLDER`, rejax 0.1.3, two CPU cores; medians of env steps/s and the range of the ratio
over 5 to 7 rounds): reached with 64 environments, not with 4.

    64 environments, one seed               354,885 1.50 times rejax [1.48, 1.62], 1.47 purejaxrl [1.35, 1.66]
    4 environments, one seed                172,386 0.97 times rejax [0.85, 1.34], 0.77 purejaxrl [0.62, 1.02]
    the same on one core (`taskset -c 1`)   243,769 1.06 times rejax [1.01, 1.09], 1.10 purejaxrl [1.07, 1.14]
    4 environments, 8 seeds on one device   313,193 1.15 times rejax [1.01, 1.44], 1.15 purejaxrl [0.88, 1.57]

Of an update of 2.2 ms (4 environments, 512 steps, one core) the rollout and its judging take 0.7 ms and the
16 gradient steps 1.4 ms. A step's six products of 128 x 64 x 64 take 33 us of its 84 at the 200 GFLOP/s
that this core reaches on them, the tanhs 12 us, Adam 9 us. A second core slows small programs down: XLA
shares out operations that are shorter than the wait for the other thread.
"""

import functools
import subprocess
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import peers

from jaxrl_align.actors import gym
from jaxrl_align.learner import train
from jaxrl_align.nets.mlp import make_actor_critic_net
from jaxrl_align.rl.actor_critic import PPOHParams, make_actor_critic
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.mesh import shard_members, use_cpu_devices


@dataclass(frozen=True)
class Config:
    """Equal networks, rollouts and updates; a round is a whole training run of every side."""

    envs: tuple[int, ...] = (4, 64)
    seeds: tuple[int, ...] = (1, 8)
    steps: int = 128
    timesteps: int = 262_144
    """Of each seed in a round."""
    rounds: int = 5
    rejax: str = ""
    """An interpreter with rejax and gymnax 0.0.9; empty leaves it out."""
    purejaxrl: str = ""
    """An interpreter with gymnax 0.0.9 and distrax; empty leaves it out."""
    purejaxrl_folder: str = ""
    """Where purejaxrl's ppo.py and wrappers.py lie."""
    sb3: str = ""
    """An interpreter with stable-baselines3 and torch, which trains one seed; empty leaves it out."""


def ours(config: Config, envs: int, seeds: int) -> peers.Round:
    """Return the measurement of our PPO, which knows how long it took to compile."""
    updates = config.timesteps // (envs * config.steps)
    net = make_actor_critic_net(2)
    actor = gym.make_actor("CartPole-v1", net, num_envs=envs, num_steps=config.steps)
    learner = make_actor_critic(actor, segment_length=1, total_steps=updates)
    keys = shard_members(jax.random.split(jax.random.key(0), seeds))
    hparams = jax.tree.map(jnp.float32, PPOHParams())
    begin = time.perf_counter()
    run = jax.jit(jax.vmap(train(learner, updates), (0, None))).lower(keys, hparams).compile()
    seconds = time.perf_counter() - begin

    def measure() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(run(keys, hparams))
        return seeds * updates * envs * config.steps / (time.perf_counter() - begin)

    measure.compile_seconds = seconds
    return measure


def start_peers(config: Config, envs: int, seeds: int) -> dict[str, subprocess.Popen]:
    """Start the peers that an interpreter was given for."""
    shared = {"envs": envs, "steps": config.steps, "timesteps": config.timesteps}
    others = {}
    if config.rejax:
        others["rejax"] = peers.start(config.rejax, "rejax_ppo", seeds=seeds, **shared)
    if config.purejaxrl:
        folder = config.purejaxrl_folder
        others["purejaxrl"] = peers.start(config.purejaxrl, "purejaxrl", seeds=seeds, folder=folder, **shared)
    if config.sb3 and seeds == 1:
        short = config.timesteps // 32
        equal = {"n_steps": config.steps, "batch_size": envs * config.steps // 4, "n_epochs": 4}
        start = functools.partial(peers.start, config.sb3, "sb3_ppo", timesteps=short)
        others["stable-baselines3"] = start(envs=envs, settings=equal)
        others["stable-baselines3 with its defaults"] = start(envs=1, settings={})
    return others


def compare(config: Config, envs: int, seeds: int, matrix_rate: float) -> None:
    """Print our rate and the peers', and the ratios of the rounds."""
    measure, others = ours(config, envs, seeds), start_peers(config, envs, seeds)
    mine, rates = np.empty(config.rounds), {name: np.empty(config.rounds) for name in others}
    measure()
    for i in range(config.rounds):
        mine[i] = measure()
        for name, process in others.items():
            rates[name][i] = peers.ask(process)
    rate = np.median(mine)
    share = rate * flops_per_step() / matrix_rate
    print(
        f"{envs} environments, {seeds} seed(s): ours {rate:,.0f} env steps/s, compiled in "
        f"{measure.compile_seconds:.1f} s, {share:.0%} of the matrix rate of one core"
    )
    for name, process in others.items():
        peers.stop(process)
        low, middle, high = np.quantile(mine / rates[name], [0, 0.5, 1])
        seconds = process.compile_seconds
        compiled = "" if np.isnan(seconds) else f", compiled in {seconds:.1f} s"
        print(
            f"  {name} {np.median(rates[name]):,.0f}{compiled}: {middle:.2f} times [{low:.2f}, {high:.2f}]",
            flush=True,
        )


def flops_per_step(epochs: int = 4, width: int = 64, obs: int = 4, actions: int = 2) -> float:
    """Return the floating-point operations of matrix products that PPO spends on one environment step.

    The policy acts once; policy and critic judge the step once, the critic the observation after it; an epoch
    takes each network forward once and back twice, less the product towards the observation.
    """
    trunk = obs * width + width * width
    policy, critic = trunk + width * actions, trunk + width
    back = 2 * (policy + critic) - 2 * obs * width
    return 2 * (policy + policy + critic + critic + epochs * (policy + critic + back))


def measure_matrix_rate(rows: int = 128, width: int = 64, count: int = 2_000) -> float:
    """Return the operations a second of float32 products [rows, width] x [width, width] in a loop."""
    kernel = jnp.eye(width) + 1e-6
    loop = jax.jit(lambda x: jax.lax.scan(lambda x, _: (x @ kernel, None), x, None, count)[0])
    x = jnp.ones((rows, width))
    jax.block_until_ready(loop(x))
    times = []
    for _ in range(9):
        begin = time.perf_counter()
        jax.block_until_ready(loop(x))
        times.append(time.perf_counter() - begin)
    return 2 * rows * width * width * count / np.median(times)


def main(config: Config) -> None:
    """Run ours and each peer in turn; medians and the range over rounds."""
    use_cpu_devices()
    for name in ("rejax", "purejaxrl", "sb3"):
        if not getattr(config, name):
            print(f"{name} is left out, give --{name} PYTHON, an interpreter that has it")
    matrix_rate = measure_matrix_rate()
    print(f"float32 products of 128 x 64 x 64: {matrix_rate / 1e9:.0f} GFLOP/s on one core")
    for envs in config.envs:
        for seeds in config.seeds:
            compare(config, envs, seeds, matrix_rate)


if __name__ == "__main__":
    cli.main(Config, main)
