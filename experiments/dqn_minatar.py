"""DQN plays Breakout and Space Invaders, MinAtar's, from images: eight seeds in one program.

The network is that of Young & Tian (2019, arXiv:1903.03176: one 3 x 3 convolution of 16 channels, one hidden
layer of 128). They publish curves (github.com/kenjyoung/MinAtar, img/learning_curves.gif, 30 runs, the
average while training with an epsilon of 0.1): DQN ends at 5 million frames near 10 on Breakout and near 44
on Space Invaders. Their games repeat the last action with probability 0.1; gymnax's do not, and end after
1000 steps. gymnax's README lists its own PPO agents at 28 and 131. `--env SpaceInvaders-MinAtar` plays the
other game.
"""

from dataclasses import dataclass

import dqn_cartpole
import jax.numpy as jnp

from jaxrl_align import envs, runtime
from jaxrl_align.nets.q_networks import make_q_net
from jaxrl_align.runtime import cli

CLAIM = runtime.Claim(
    "Deep Q-learning plays games from images: MinAtar's, as well as its authors' DQN, in fewer frames.",
    rows=("A5", "A8", "A10", "A12", "A13"),
    minutes=15,
)


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
    """Of the 3 x 3 convolution."""
    hidden: int = 128
    """Units of the hidden layer."""


def main(config: Config) -> None:
    """Train, judge greedily and by the training policy, draw the learning curve and write the returns."""
    heads = {"duelling": config.duelling, "noisy": config.noisy}
    net = make_q_net(envs.num_actions(config.env), (config.hidden,), channels=config.channels, **heads)
    rounds = config.total_env_steps // (config.num_envs * config.num_steps)
    dqn_cartpole.play(
        config,
        net,
        CLAIM,
        max_steps=1_001,
        warmup_steps=min(5_000, config.capacity // 2),
        preprocess=lambda image: image.astype(jnp.bool_),
        chunk=max(1, min(200, rounds // 20)),
    )


if __name__ == "__main__":
    cli.main(Config, main)
