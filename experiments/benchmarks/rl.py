"""Our PPO's environment steps a second on CartPole against purejaxrl's, rejax's and stable-baselines3's.

Claim: at equal configuration (128 steps of 4 or 64 environments, 4 epochs of 4 minibatches, two 64-64 tanh
networks) at least 1.3 times purejaxrl and rejax, for one seed and for 8, and 50 times stable-baselines3.

Measured (`python experiments/benchmarks/rl.py --timesteps 131072 --rejax PYTHON --purejaxrl PYTHON
--purejaxrl-folder FOLDER --sb3 PYTHON`, 65536 with 8 seeds; rejax 0.1.3, stable-baselines3 2.9, two CPU
cores; medians of env steps/s and the range of the ratio over 5 rounds in turn): it holds with 64
environments, and with 4 it does not.

                               ours    rejax                 purejaxrl             stable-baselines3
    64 environments         395,329    1.41 [1.29, 1.58]     1.37 [1.28, 1.48]     9.3 [8.5, 9.4]
    64, 8 seeds             401,561    1.43 [1.31, 1.49]     locks up
    4, on one core          253,125    1.06 [1.00, 1.18]     1.11 [1.06, 1.18]     25 [24, 27]
    4, on two               161,067    0.99 [0.86, 1.10]     0.94 [0.70, 1.15]     27 [18, 32]
    4, 8 seeds              331,190    1.14 [1.11, 1.24]     1.17 [1.11, 1.31]

Against stable-baselines3 with its own defaults (one environment, 2,048 steps, 10 epochs of minibatches of 64;
2,547 to 2,672 steps/s) it is 94 [91, 99] times with 4 environments and 153 [139, 170] with 64. Compiling
takes 4.6 to 7.6 s, a second more than rejax (3.6 to 6.0) and less than purejaxrl (4.9 to 7.7). With 8 seeds
of 64 environments purejaxrl did not come back in three trials, as far as we see from batched QR
decompositions that wait for one another's threads (`nets/mlp.py` has the story).

Of an update of 1.93 ms (4 environments, 512 steps, one core) acting takes 0.57 ms, judging the steps 0.14,
the orders of the minibatches 0.05 and 16 gradient steps 1.17. A gradient step of 73 us spends 33 on its six
products of 128 x 64 x 64, which run at this core's 200 GFLOP/s, 12 on the tanhs, 9 on Adam, 4 on the loss and
the rest on ten products too thin to be fast: all in all 30% of the matrix rate with 4 environments and 48%
with 64. What the peers share with us is at least those 1.17 ms of their 2.2, so with 4 environments a factor
of 1.3 would leave 0.5 ms for everything else. Reset states drawn at once for all steps would save 0.2 ms here
and cost half the speed of a thousand MinAtar games. A second core slows small programs down: XLA shares out
operations that are shorter than the wait for the other thread (`PJRT_NPROC=1` gives 15% back).
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
from jaxrl_align.runtime.mesh import shard_members


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
