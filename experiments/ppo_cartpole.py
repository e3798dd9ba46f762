"""PPO solves CartPole-v1 in half a million steps, all seeds in one program; and Acrobot-v1 alike.

Solved means that each seed's last 100 training episodes, played by the sampling policy, return at least Gym's
own threshold. `--env Acrobot-v1 --seeds 10` plays the other task with the same settings. CleanRL's
documentation lists 490.0 and -86.4 for its PPO after as many steps.
"""

from dataclasses import dataclass

import numpy as np
import returns

from jaxrl_align import actors, envs, evaluate, nets, rl, runtime
from jaxrl_align.runtime import cli, plots

CLAIM = runtime.Claim(
    "Proximal policy optimisation with a clip solves a task of control within half a million steps, on every "
    "seed.",
    rows=("B21",),
    minutes=0.5,
)
PUBLISHED = {"CartPole-v1": 490.0, "Acrobot-v1": -86.4, "Breakout-MinAtar": 28.0}
"""CleanRL's returns after 500,000 steps (docs.cleanrl.dev), and that of the agent in gymnax's README."""


@dataclass(frozen=True)
class Config(runtime.MembersConfig):
    """PPO on an environment with discrete actions."""

    out: str = "runs/ppo_cartpole"
    env: str = "CartPole-v1"
    """A gymnax name."""
    num_envs: int = 8
    """Environments side by side, for each member."""
    num_steps: int = 128
    """Steps of each environment between two updates."""
    total_env_steps: int = 500_000
    """Of each member."""
    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 4
    """Gradient steps of a pass."""
    learning_rate: float = 1e-3
    """Of Adam at the start; it falls linearly to 0."""
    gamma: float = 0.99
    """The discount of a step."""
    gae_lambda: float = 0.95
    """Of the generalised advantages: 0 trusts the critic after one step, 1 never."""
    clip: float = 0.2
    """The ratio of the new to the acting policy earns nothing beyond [1 - clip, 1 + clip]."""
    value_clip: float = 0.2
    """The critic earns nothing beyond this distance from its old value; inf switches it off."""
    value_coef: float = 0.5
    """Weight of the critic's loss."""
    entropy_coef: float = 0.01
    """Weight of the entropy [nats], which is rewarded."""
    solved: float | None = None
    """The return that is counted and drawn as solved; None, Gym's own where it has one."""


def main(config: Config) -> None:
    """Train two perceptrons, draw the learning curve, and write each seed's return."""
    play(config, nets.make_actor_critic_net(envs.num_actions(config.env)), CLAIM)


def play(config: Config, net: nets.Net, claim: runtime.Claim) -> None:
    """Train a network, draw the learning curve, and write each seed's return."""
    config.require(seeds=1, total_env_steps=config.num_envs * config.num_steps)
    updates = config.total_env_steps // (config.num_envs * config.num_steps)
    actor = actors.make_actor(config.env, net, num_envs=config.num_envs, num_steps=config.num_steps)
    size = {"epochs": config.epochs, "minibatches": config.minibatches, "total_steps": updates}
    learner = rl.make_actor_critic(actor, segment_length=1, **size)
    hparams = rl.PPOHParams(*(getattr(config, name) for name in rl.PPOHParams._fields))
    shown = ("episode_return_last100",)
    state, history, seconds, folder = runtime.train_members(
        learner, hparams, config, updates, label="ppo", show=shown
    )
    evaluate.keep_policy(folder, net, state, env=config.env)

    steps = np.arange(1, updates + 1) * config.num_envs * config.num_steps
    print(f"{config.seeds * steps[-1]} env steps in {seconds:.1f} s, compilation included")
    played = history["episode_return_last100"]
    first, last = returns.first_finite(played), played[-1]
    solved = returns.SOLVED.get(config.env) if config.solved is None else config.solved
    row = returns.summarise(config.env, last, first, solved)
    curves = {f"{config.seeds} seeds, 95% interval": (steps, played)}
    levels = {} if solved is None else {f"solved ({solved:g})": solved}
    bounds = returns.return_range(config.env)
    how = {"title": f"PPO on {config.env}", "levels": levels, "bounds": bounds}
    plots.save_curves(folder.path / "learning_curve.png", *plots.RETURN_AXES, curves, **how)
    runtime.write_result(
        folder,
        config,
        claim,
        headline={f"return on {config.env}, interquartile mean": row["interquartile mean"]},
        baselines={"return of the first episodes": runtime.interquartile_mean(first)},
        checks=returns.judge(row, solved, PUBLISHED.get(config.env)),
        tables={f"return of the last 100 episodes, after {steps[-1]} steps a seed": {"PPO": row}},
        figures=["learning_curve.png"],
    )


if __name__ == "__main__":
    cli.main(Config, main)
