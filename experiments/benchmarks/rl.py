"""Our PPO's environment steps a second on CartPole against purejaxrl's, rejax's and stable-baselines3's.

Claim: at equal configuration (128 steps of 4 or 64 environments, 4 epochs of 4 minibatches, two 64-64 tanh
networks) at least 1.5 times purejaxrl and rejax with 64 environments and no slower than either with 4, and 50
times stable-baselines3.

What came out is in docs/benchmarks.md; the share of the floor there is that of one core's products. Compiling
takes as long as purejaxrl's does and 1.2 to 1.4 times as long as rejax's: of 3.7 s 0.8 are spent in Python,
0.8 for the first state (six orthogonal matrices), 0.4 for the metrics and 0.4 for Adam's 36 loops. With
several seeds purejaxrl does not always come back, as far as we see from batched QR decompositions that wait
for one another's threads (`nets/mlp.py` has the story), and is left out.

Where an update's time goes, by leaving parts out, with the products below and without the gathers: with 4
environments on one core 0.65 ms of 1.74 for acting and judging, 0.13 for Adam and its norm, 0.03 for the
metrics; with 64 on two cores 3.2 of 14.5, 0.7 and 1.1. The rest are products, tanhs and the loss.

What paid: a kernel's gradient x^T dy took the slow path of XLA's CPU backend, whose fast products sum over
the first operand's last axis (`nets/products.py`). Of 128 rows on one core a kernel of 64 x 64 took 7.6 us
against 5.6 on the fast path, one of 4 x 64 3.5 against 0.6; of 2,048 rows the latter took 88 against 5. An
update of 4 environments fell from 1.95 to 1.71 ms on one core, one of 64 from 17.5 to 14.2 on two (parameters
after 10 updates are the same bit for bit with 4, and differ by at most 6e-8 with 64). It needs the rows of a
minibatch side by side, so these nets read rows at once: under `vmap` jax forms the gradient otherwise. One
gather of each leaf an epoch in place of one a step: 1.92 to 1.71 ms with 4 environments on two cores, 1.74 to
1.70 on one, nothing with 64.

What did not (ms an update before and after; 4 environments on one core, then 64 on two):

    Adam and its norm on one flat vector    1.74 to 1.70   14.5 to 14.1   0.4 s less to compile, another state
    the minibatches of all epochs at once   1.74 to 1.76   14.5 to 14.5
    one gather of all leaves, packed        1.74 to 1.74   14.5 to 14.4
    gathers that promise to be in bounds    1.74 to 1.73   14.5 to 14.5
    actions picked by a mask                1.74 to 1.73   14.5 to 15.5
    and from one log-softmax with entropy   1.74 to 1.73   14.5 to 15.7
    features before rows in activations     1.74 to 1.74   13.5 to 15.6   (beside the products that were kept)
    four metrics as one stacked mean        1.68 to 1.70   22.6 to 22.5   (two cores both, the last busy)
    reset states drawn at once              0.2 less       half the speed of a thousand MinAtar games

A second core slows small programs down: XLA shares out operations that are shorter than the wait for the
other thread (`PJRT_NPROC=1` shows by how much). How much hangs on the program's details: with one metric or
another left out an update of 1.66 ms took 1.88, and now and then a whole round takes 2.7.
"""

import contextlib
import functools
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import peers
from contest import ContestConfig, Side, contest, rivals, run
from floors import best_rate

from jaxrl_align.actors import gym
from jaxrl_align.learner import train
from jaxrl_align.nets.mlp import make_actor_critic_net
from jaxrl_align.rl.actor_critic import PPOHParams, make_actor_critic
from jaxrl_align.runtime.mesh import shard_members


@dataclass(frozen=True)
class Config(ContestConfig):
    """Equal networks, rollouts and updates; a round is a whole training run of every side."""

    envs: tuple[int, ...] = (4, 64)
    seeds: tuple[int, ...] = (1, 8)
    steps: int = 128
    timesteps: int = 262_144
    """Of each seed in a round."""
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


def add_rivals(config: Config, stack: contextlib.ExitStack, envs: int, seeds: int) -> dict[str, Side]:
    """Return the peers that an interpreter was given for, running while the stack is open."""
    shared = {"envs": envs, "steps": config.steps, "timesteps": config.timesteps}
    add = lambda *args, **kwargs: stack.enter_context(rivals(*args, **kwargs))
    others = add(config.rejax, "rejax_ppo", name="rejax", flag="rejax", seeds=seeds, **shared)
    if seeds > 1:  # its batched QR decompositions wait for one another's threads, now and then for ever
        print("purejaxrl is left out: several seeds at once can lock it up")
    else:
        settings = shared | {"seeds": seeds, "folder": config.purejaxrl_folder}
        others |= add(config.purejaxrl, "purejaxrl", name="purejaxrl", flag="purejaxrl", **settings)
    if seeds == 1:
        name, short = "stable-baselines3", config.timesteps // 32
        equal = {"n_steps": config.steps, "batch_size": envs * config.steps // 4, "n_epochs": 4}
        start = functools.partial(add, config.sb3, "sb3_ppo", flag="sb3", timesteps=short)
        others |= start(name=name, envs=envs, settings=equal)
        others |= start(name=f"{name} with its defaults", envs=1, settings={})
    return others


def compare(config: Config, envs: int, seeds: int, matrix_rate: float) -> None:
    """Measure ours and the peers in turn; the floor is PPO's products at the rate of one core."""
    measure = ours(config, envs, seeds)
    print(f"ours compiled in {measure.compile_seconds:.1f} s")
    what = f"PPO on CartPole, environments: {envs}, seeds at once: {seeds}"
    with contextlib.ExitStack() as stack:
        sides = {"ours": measure} | add_rivals(config, stack, envs, seeds)
        contest(what, "env steps/s", sides, config.rounds, floor=matrix_rate / flops_per_step())


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
    return best_rate(lambda: loop(x), 2.0 * rows * width * width * count)


def main(config: Config) -> None:
    """Measure every number of environments, with one seed and with several."""
    matrix_rate = measure_matrix_rate()
    print(f"float32 products of 128 x 64 x 64: {matrix_rate / 1e9:.0f} GFLOP/s on one core")
    for envs in config.envs:
        for seeds in config.seeds:
            compare(config, envs, seeds, matrix_rate)


if __name__ == "__main__":
    run(Config, main)
