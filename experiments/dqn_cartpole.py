"""DQN solves CartPole-v1, and Acrobot-v1 with the same settings, ten seeds in one program.

Claim: Q-learning with a neural network, a replay memory and a target network learns to balance the pole (the
lectures' Algorithm 1; Mnih et al. 2015). CleanRL's DQN reaches 498.4 on CartPole and -88.9 on Acrobot.

Measured (`python experiments/dqn_cartpole.py`, and `--env Acrobot-v1`: 10 seeds, half a million steps each,
100 evaluation episodes of each apart from training; interquartile mean with its 95% bootstrap interval; two
shared CPU cores, two to five minutes for all ten):

    CartPole   greedy 497.1 [463.2, 500.0], mean 476.1;   epsilon 0.05: 496.5 [463.2, 500.0], mean 476.0
    Acrobot    greedy -82.6 [-86.8, -81.1], mean -83.9;   epsilon 0.05: -88.7 [-91.4, -87.6], mean -89.3

CleanRL's figures are returns of training episodes, at an epsilon of 0.05. The greedy policies are better on
Acrobot, the sampled ones level with -88.9. One CartPole seed ends at 336. Ten other seeds, before the random
draws of a step were made at once, came to 499.9 [485.8, 500.0] and -84.0 [-85.9, -82.1], greedily, and ten
before those to -86.2 [-88.1, -85.0] on Acrobot.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxrl_align import actors, envs, evaluate, nets, rl, runtime
from jaxrl_align.learner import make_optimizer
from jaxrl_align.runtime import cli, plots, statistics
from jaxrl_align.types import Params


@dataclass(frozen=True)
class Config(runtime.MembersConfig):
    """DQN on an environment with discrete actions."""

    out: str = "runs/dqn_cartpole"
    seeds: int = 10
    env: str = "CartPole-v1"
    """A gymnax name."""
    num_envs: int = 8
    """Environments side by side, for each member."""
    num_steps: int = 1
    """Steps of each environment between two rounds of updates."""
    updates: int = 1
    """Gradient steps after each rollout."""
    total_env_steps: int = 500_000
    """Of each member."""
    capacity: int = 50_000
    """Transitions that the replay holds, the latest."""
    batch_size: int = 128
    """Transitions of a gradient step."""
    learning_rate: float = 2.5e-4
    """Of Adam, at the start."""
    anneal: bool = True
    """Let the learning rate fall linearly to 0."""
    max_grad_norm: float | None = None
    """Gradients are cut to this norm; None leaves them."""
    target_period: int = 50
    """Gradient steps between two copies of the target net."""
    epsilon_steps: int = 100_000
    """Environment steps over which the share of random actions falls from 1 to 0.05."""
    n_step: int = 1
    """Rewards that are summed before the target net is asked."""
    double: bool = True
    """Let the online net choose the action that the target net values (double DQN)."""
    duelling: bool = False
    """Give state value and advantages a head each."""
    prioritised: bool = False
    """Draw transitions of large error more often."""
    noisy: bool = False
    """Explore by learnt noise on the weights instead of random actions."""
    episodes: int = 100
    """Greedy and sampled evaluation episodes of each member, after training."""
    checkpoint_every: int | None = None
    """Rounds between checkpoints, which hold the replay too; none means one at the end."""


def judge(config: Config, net: nets.QNet, params: Params, max_steps: int) -> dict[str, np.ndarray]:
    """Play whole episodes greedily and with epsilon 0.05; print and return each member's mean return [M]."""
    result = {}
    for name, epsilon in {"greedy": 0.0, "epsilon 0.05": 0.05}.items():

        def member(params: Params, key: jax.Array, epsilon: float = epsilon) -> envs.Episodes:
            policy = actors.epsilon_greedy(net, params, epsilon)
            size = {"num_episodes": config.episodes, "max_steps": max_steps}
            return envs.evaluate_policy(config.env, policy, key, **size)

        played = jax.jit(jax.vmap(member))(params, config.keys(1))
        if not played.finished.all():
            raise ValueError(f"an episode of {config.env} lasts longer than max_steps={max_steps}")
        result[name] = returns = np.asarray(played.episode_return.mean(1))
        print(f"{name}, per seed:", " ".join(f"{r:.1f}" for r in returns))
        print(
            f"{name}: interquartile mean {statistics.interquartile_text(returns)}, mean {returns.mean():.1f}"
        )
    return result


def play(
    config: Config,
    net: nets.QNet,
    *,
    max_steps: int,
    warmup_steps: int = 1_000,
    preprocess: Callable[[jax.Array], jax.Array] = lambda obs: obs,
    **options: Any,
) -> None:
    """Train a network, evaluate it greedily and by the training policy, and draw the learning curve.

    Args:
      config: of this experiment, or one that adds to it.
      net: the action values.
      max_steps: at least the longest evaluation episode.
      warmup_steps: of random play before the first update.
      preprocess: of observations, before they are stored.
      options: of `loop.run`.
    """
    per_step = config.num_envs * config.num_steps
    steps = max(1, config.total_env_steps // per_step)
    size = {"num_envs": config.num_envs, "num_steps": config.num_steps}
    actor = actors.make_value_actor(config.env, net, preprocess=preprocess, **size)
    learner = rl.make_dqn(
        actor,
        capacity=config.capacity,
        batch_size=config.batch_size,
        updates=config.updates,
        warmup_steps=warmup_steps,
        n_step=config.n_step,
        double=config.double,
        prioritised=config.prioritised,
        optimizer=make_optimizer(max_grad_norm=config.max_grad_norm, eps=1e-8),
        total_steps=steps if config.anneal else None,
    )
    memory = rl.memory_bytes(actor, config.capacity, prioritised=config.prioritised)
    print(f"replay: {memory / 1e6:.1f} MB for each of {config.seeds} seeds")
    hparams = rl.DQNHParams(
        learning_rate=config.learning_rate,
        target_period=config.target_period,
        epsilon_start=0.0 if config.noisy else 1.0,
        epsilon_end=0.0 if config.noisy else 0.05,
        epsilon_steps=config.epsilon_steps,
        beta_steps=config.total_env_steps,
    )
    options |= {"label": "dqn", "show": ("episode_return_last100", "loss")}
    options |= {"checkpoint_every": config.checkpoint_every, "on_chunk": lambda _, s, m: rl.check_rewards(s)}
    state, history, seconds, folder = runtime.train_members(learner, hparams, config, steps, **options)
    evaluate.keep_policy(folder, net, state, env=config.env, max_steps=max_steps)

    print(f"{config.seeds * steps * per_step} env steps in {seconds:.1f} s, compilation included")
    result = judge(config, net, state.params, max_steps)
    folder.write_json("result.json", result | {"seconds": seconds, "env_steps": steps * per_step})
    every = max(1, steps // 200)
    at = np.arange(every, steps + 1, every)
    returns = history["episode_return_last100"][at - 1]
    curves = {f"{config.seeds} seeds, 95% interval": (at * per_step, returns)}
    path, title = folder.path / "learning_curve.png", f"DQN on {config.env}"
    plots.save_curves(path, *plots.RETURN_AXES, curves, title=title)


def main(config: Config) -> None:
    """Train perceptrons, evaluate them greedily and by the training policy, and draw the learning curve."""
    net = nets.make_q_net(envs.num_actions(config.env), duelling=config.duelling, noisy=config.noisy)
    play(config, net, max_steps=500)


if __name__ == "__main__":
    cli.main(Config, main)
