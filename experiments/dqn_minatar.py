"""DQN plays Breakout and Space Invaders, MinAtar's, from images: eight seeds in one program.

Claim: the network of Young & Tian (2019, arXiv:1903.03176: one 3 x 3 convolution of 16 channels, one hidden
layer of 128) learns both games within their 5 million frames.

Measured (`python experiments/dqn_minatar.py`: 8 seeds, 2 million frames each, 100 evaluation episodes of each
apart from training; interquartile mean with its 95% bootstrap interval; 25 to 70 min a game on two shared
CPU cores; the second game with `--env SpaceInvaders-MinAtar`):

    Breakout          greedy  27.6 [25.7,  35.0], mean  29.7;   epsilon 0.05: 19.2 [18.2, 20.4], mean 19.3
    Space Invaders    greedy 134.8 [86.5, 142.0], mean 115.5;   epsilon 0.05: 84.0 [66.6, 93.1], mean 79.8

Young & Tian publish curves (github.com/kenjyoung/MinAtar, img/learning_curves.gif, 30 runs, the average while
training with an epsilon of 0.1): DQN ends at 5 million frames near 10 on Breakout and near 44 on Space
Invaders, which both lines above exceed after 2 million. Their games repeat the last action with probability
0.1; gymnax's do not, and end after 1000 steps. gymnax's README lists its own PPO agents at 28 and 131.
"""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from dqn_cartpole import draw, judge

from jaxrl_align import envs
from jaxrl_align.actors.value import make_value_actor
from jaxrl_align.nets.q_networks import make_q_net
from jaxrl_align.rl.dqn import DQNHParams, check_rewards, make_dqn, memory_bytes
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.folder import open_run
from jaxrl_align.runtime.loop import run
from jaxrl_align.runtime.mesh import shard_members, use_cpu_devices


@dataclass(frozen=True)
class Config:
    """DQN on a MinAtar game."""

    env: str = "Breakout-MinAtar"
    """Or SpaceInvaders-MinAtar, or any other gymnax name with images."""
    seeds: int = 8
    """Members trained side by side."""
    seed: int = 0
    """The key from which the members' keys are split."""
    num_envs: int = 64
    num_steps: int = 4
    """Steps of each environment between two rounds of updates."""
    updates: int = 16
    """Gradient steps after each rollout: one for 16 frames, where Young & Tian take one a frame."""
    total_env_steps: int = 2_000_000
    """Of each member."""
    capacity: int = 131_072
    batch_size: int = 64
    n_step: int = 3
    learning_rate: float = 5e-4
    target_period: int = 500
    """Gradient steps between two copies of the target net."""
    epsilon_steps: int = 250_000
    double: bool = True
    channels: int = 16
    hidden: int = 128
    episodes: int = 100
    """Greedy and sampled evaluation episodes of each member, after training."""
    checkpoint_every: int = 2_000
    """Rounds between checkpoints, which hold the replay too."""
    out: str = "runs/dqn_minatar"
    resume: bool = False


def main(config: Config) -> None:
    """Train, evaluate greedily and by the training policy, and draw the learning curve."""
    use_cpu_devices()
    per_step = config.num_envs * config.num_steps
    steps = max(1, config.total_env_steps // per_step)
    net = make_q_net(envs.num_actions(config.env), (config.hidden,), channels=config.channels)
    actor = make_value_actor(
        config.env,
        net,
        num_envs=config.num_envs,
        num_steps=config.num_steps,
        preprocess=lambda image: image.astype(jnp.bool_),
    )
    learner = make_dqn(
        actor,
        capacity=config.capacity,
        batch_size=config.batch_size,
        updates=config.updates,
        warmup_steps=min(5_000, config.capacity // 2),
        n_step=config.n_step,
        double=config.double,
    )
    size = memory_bytes(actor, config.capacity)
    print(f"replay: {size / 1e6:.1f} MB for each of {config.seeds} seeds")
    hparams = DQNHParams(
        learning_rate=config.learning_rate,
        target_period=config.target_period,
        epsilon_steps=config.epsilon_steps,
    )
    folder = open_run(config.out, config, resume=config.resume)
    start = time.perf_counter()
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    state, history = run(
        jax.vmap(learner.step),
        shard_members(jax.jit(jax.vmap(learner.init, (0, None)))(keys, hparams)),
        steps,
        chunk=max(1, min(200, steps // 20)),
        folder=folder,
        label="dqn",
        show=("episode_return_last100", "loss"),
        checkpoint_every=config.checkpoint_every,
        on_chunk=lambda _, state: check_rewards(state),
    )
    seconds = time.perf_counter() - start
    print(f"{config.seeds * steps * per_step} env steps in {seconds:.1f} s, compilation included")
    key = jax.random.key(config.seed + 1)
    result = judge(config.env, net, state.params, key, episodes=config.episodes, max_steps=1_001)
    folder.write_json("result.json", result | {"seconds": seconds, "env_steps": steps * per_step})
    draw(folder.path / "learning_curve.png", config.env, history["episode_return_last100"], per_step)


if __name__ == "__main__":
    cli.main(Config, main)
