"""PPO plays Breakout, MinAtar's, from images, by the program that balances CartPole.

Nothing but the network changes between a pole and a game: one 3 x 3 convolution of 16 channels before a
hidden layer of 64, shared by policy and critic (Young & Tian 2019, arXiv:1903.03176, whose DQN has 128).
Returns are those of the last 100 training episodes, by the sampling policy. gymnax's README has a PPO agent
of 28, and purejaxrl's draws its PPO near 40 after 10 million steps.
"""

from dataclasses import dataclass

import jax
import ppo_cartpole

from jaxrl_align import envs, runtime
from jaxrl_align.nets.mlp import make_actor_critic_net
from jaxrl_align.runtime import cli

CLAIM = runtime.Claim(
    "Nothing but the network changes between balancing a pole and playing a game from images: PPO with one "
    "convolution plays MinAtar's Breakout as well as the published agent.",
    rows=("B21",),
    minutes=10,
)


@dataclass(frozen=True)
class Config(ppo_cartpole.Config):
    """PPO on a MinAtar game."""

    out: str = "runs/ppo_minatar"
    env: str = "Breakout-MinAtar"
    """Or another gymnax name with images."""
    num_envs: int = 64
    num_steps: int = 128
    total_env_steps: int = 2_000_000
    minibatches: int = 8
    learning_rate: float = 5e-3
    """At 1e-3 with 32 x 64 steps the policy was sure of itself, and stuck at 6, after 250,000 steps."""
    solved: float | None = 28.0
    """Of gymnax's own PPO agent (its README)."""
    hidden: int = 64
    """Units of the hidden layer."""
    channels: int = 16
    """Of the 3 x 3 convolution."""


def main(config: Config) -> None:
    """Train, draw the learning curve, and write each seed's return."""
    net = make_actor_critic_net(
        envs.num_actions(config.env), (config.hidden,), jax.nn.relu, shared=True, channels=config.channels
    )
    ppo_cartpole.play(config, net, CLAIM)


if __name__ == "__main__":
    cli.main(Config, main)
