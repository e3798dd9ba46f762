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

import time
from dataclasses import dataclass
from pathlib import Path

import chex
import jax
import numpy as np

from jaxrl_align import envs
from jaxrl_align.actors.value import epsilon_greedy, make_value_actor
from jaxrl_align.learner import make_optimizer
from jaxrl_align.nets.q_networks import QNet, make_q_net
from jaxrl_align.rl.dqn import DQNHParams, check_rewards, make_dqn, memory_bytes
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.folder import open_run
from jaxrl_align.runtime.loop import run
from jaxrl_align.runtime.metrics import interquartile_mean
from jaxrl_align.runtime.plots import curve_with_interval, figure, save_figure
from jaxrl_align.types import Params


@dataclass(frozen=True)
class Config:
    """DQN on an environment with discrete actions."""

    env: str = "CartPole-v1"
    """A gymnax name."""
    seeds: int = 10
    """Members trained side by side."""
    seed: int = 0
    """The key from which the members' keys are split."""
    num_envs: int = 8
    num_steps: int = 1
    """Steps of each environment between two rounds of updates."""
    updates: int = 1
    """Gradient steps after each rollout."""
    total_env_steps: int = 500_000
    """Of each member."""
    capacity: int = 50_000
    batch_size: int = 128
    learning_rate: float = 2.5e-4
    anneal: bool = True
    """Let the learning rate fall linearly to 0."""
    max_grad_norm: float | None = None
    target_period: int = 50
    """Gradient steps between two copies of the target net."""
    epsilon_steps: int = 100_000
    n_step: int = 1
    double: bool = True
    duelling: bool = False
    prioritised: bool = False
    noisy: bool = False
    episodes: int = 100
    """Greedy and sampled evaluation episodes of each member, after training."""
    out: str = "runs/dqn_cartpole"
    resume: bool = False


def evaluate(
    env: str, net: QNet, params: Params, key: chex.PRNGKey, *, epsilon: float, episodes: int, max_steps: int
) -> np.ndarray:
    """Return each member's mean return over whole episodes, played apart from training: [M]."""

    def member(params: Params, key: chex.PRNGKey) -> envs.Episodes:
        policy = epsilon_greedy(net, params, epsilon)
        return envs.evaluate_policy(env, policy, key, num_episodes=episodes, max_steps=max_steps)

    members = jax.tree.leaves(params)[0].shape[0]
    played = jax.jit(jax.vmap(member))(params, jax.random.split(key, members))
    if not played.finished.all():
        raise ValueError(f"an episode of {env} lasts longer than max_steps={max_steps}")
    return np.asarray(played.episode_return.mean(1))


def judge(
    env: str, net: QNet, params: Params, key: chex.PRNGKey, *, episodes: int, max_steps: int
) -> dict[str, np.ndarray]:
    """Play greedily and with epsilon = 0.05; print both and return each member's mean return."""
    result = {}
    for name, epsilon in {"greedy": 0.0, "epsilon 0.05": 0.05}.items():
        returns = evaluate(env, net, params, key, epsilon=epsilon, episodes=episodes, max_steps=max_steps)
        mean, low, high = interquartile_mean(returns)
        result[name] = returns
        print(f"{name}, per seed:", " ".join(f"{r:.1f}" for r in returns))
        print(f"{name}: interquartile mean {mean:.1f} [{low:.1f}, {high:.1f}], mean {returns.mean():.1f}")
    return result


def draw(path: Path, env: str, returns: np.ndarray, per_step: int) -> None:
    """Draw the learning curve: returns [steps, members] of the last 100 training episodes."""
    every = max(1, len(returns) // 200)
    fig, ax = figure("environment steps per seed", "return, last 100 episodes", title=f"DQN on {env}")
    x = (np.arange(len(returns)) + 1)[every - 1 :: every] * per_step
    curve_with_interval(ax, x, returns[every - 1 :: every], f"{returns.shape[1]} seeds, 95% interval")
    ax.legend(loc="lower right")
    save_figure(fig, path)


def main(config: Config) -> None:
    """Train, evaluate greedily and by the training policy, and draw the learning curve."""
    per_step = config.num_envs * config.num_steps
    steps = max(1, config.total_env_steps // per_step)
    net = make_q_net(envs.num_actions(config.env), duelling=config.duelling, noisy=config.noisy)
    actor = make_value_actor(config.env, net, num_envs=config.num_envs, num_steps=config.num_steps)
    learner = make_dqn(
        actor,
        capacity=config.capacity,
        batch_size=config.batch_size,
        updates=config.updates,
        n_step=config.n_step,
        double=config.double,
        prioritised=config.prioritised,
        optimizer=make_optimizer(max_grad_norm=config.max_grad_norm, eps=1e-8),
        total_steps=steps if config.anneal else None,
    )
    size = memory_bytes(actor, config.capacity, prioritised=config.prioritised)
    print(f"replay: {size / 1e6:.1f} MB for each of {config.seeds} seeds")
    hparams = DQNHParams(
        learning_rate=config.learning_rate,
        target_period=config.target_period,
        epsilon_start=0.0 if config.noisy else 1.0,
        epsilon_end=0.0 if config.noisy else 0.05,
        epsilon_steps=config.epsilon_steps,
        beta_steps=config.total_env_steps,
    )
    folder = open_run(config.out, config, resume=config.resume)
    start = time.perf_counter()
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    state = jax.jit(jax.vmap(learner.init, (0, None)))(keys, hparams)
    state, history = run(
        jax.vmap(learner.step),
        state,
        steps,
        chunk=max(1, steps // 20),
        folder=folder,
        label="dqn",
        show=("episode_return_last100", "loss"),
        on_chunk=lambda _, state: check_rewards(state),
    )
    seconds = time.perf_counter() - start

    print(f"{config.seeds * steps * per_step} env steps in {seconds:.1f} s, compilation included")
    key = jax.random.key(config.seed + 1)
    result = judge(config.env, net, state.params, key, episodes=config.episodes, max_steps=500)
    folder.write_json("result.json", result | {"seconds": seconds, "env_steps": steps * per_step})
    draw(folder.path / "learning_curve.png", config.env, history["episode_return_last100"], per_step)


if __name__ == "__main__":
    cli.main(Config, main)
