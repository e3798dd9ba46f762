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

from dataclasses import dataclass

import dqn_cartpole
import jax.numpy as jnp

from jaxrl_align import envs
from jaxrl_align.nets.q_networks import make_q_net
from jaxrl_align.runtime import cli


@dataclass(frozen=True)
class Config(dqn_cartpole.Config):
    """DQN on a MinAtar game."""

    out: str = "runs/dqn_minatar"
    seeds: int = 8
    env: str = "Breakout-MinAtar"
    """Or SpaceInvaders-MinAtar, or any other gymnax name with images."""
    num_envs: int = 64
    num_steps: int = 4
    updates: int = 16
    """Gradient steps after each rollout: one for 16 frames, where Young & Tian take one a frame."""
    total_env_steps: int = 2_000_000
    capacity: int = 131_072
    batch_size: int = 64
    learning_rate: float = 5e-4
    anneal: bool = False
    max_grad_norm: float | None = 10.0
    target_period: int = 500
    epsilon_steps: int = 250_000
    n_step: int = 3
    checkpoint_every: int | None = 2_000
    channels: int = 16
    hidden: int = 128


def main(config: Config) -> None:
    """Train, evaluate greedily and by the training policy, and draw the learning curve."""
    heads = {"duelling": config.duelling, "noisy": config.noisy}
    net = make_q_net(envs.num_actions(config.env), (config.hidden,), channels=config.channels, **heads)
    rounds = config.total_env_steps // (config.num_envs * config.num_steps)
    dqn_cartpole.play(
        config,
        net,
        max_steps=1_001,
        warmup_steps=min(5_000, config.capacity // 2),
        preprocess=lambda image: image.astype(jnp.bool_),
        chunk=max(1, min(200, rounds // 20)),
    )


if __name__ == "__main__":
    cli.main(Config, main)
