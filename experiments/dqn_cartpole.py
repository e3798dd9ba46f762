"""DQN solves CartPole-v1, and Acrobot-v1 with the same settings, ten seeds in one program.

The lectures' Algorithm 1 (Mnih et al. 2015). Each seed is judged by whole episodes apart from training,
played greedily and with an epsilon of 0.05, and counts as solved at Gym's own threshold. CleanRL's
documentation lists 498.4 on CartPole and -88.9 on Acrobot for its DQN, of training episodes at an epsilon of
0.05, so it is the sampled policies that are held against these.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import returns

from jaxrl_align import actors, envs, evaluate, nets, rl, runtime
from jaxrl_align.learner import make_optimizer
from jaxrl_align.runtime import cli, plots
from jaxrl_align.types import Params

CLAIM = runtime.Claim(
    "Q-learning with a neural network, a replay memory and a target network learns tasks of control.",
    rows=("A5", "A8", "A10", "A12", "A13"),
    minutes=4,
)
PUBLISHED = {
    "CartPole-v1": 498.4,
    "Acrobot-v1": -88.9,
    "Breakout-MinAtar": 10.0,
    "SpaceInvaders-MinAtar": 44.0,
}
"""CleanRL's returns after 500,000 steps (docs.cleanrl.dev); Young & Tian's, read off their curves."""
SAMPLED = "epsilon 0.05"


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
    """Play whole episodes greedily and with epsilon 0.05; return each member's mean return [M]."""
    result = {}
    for name, epsilon in {"greedy": 0.0, SAMPLED: 0.05}.items():

        def member(params: Params, key: jax.Array, epsilon: float = epsilon) -> envs.Episodes:
            policy = actors.epsilon_greedy(net, params, epsilon)
            size = {"num_episodes": config.episodes, "max_steps": max_steps}
            return envs.evaluate_policy(config.env, policy, key, **size)

        played = jax.jit(jax.vmap(member))(params, config.keys(1))
        if not played.finished.all():
            raise ValueError(f"an episode of {config.env} lasts longer than max_steps={max_steps}")
        result[name] = np.asarray(played.episode_return.mean(1))
    return result


def play(
    config: Config,
    net: nets.QNet,
    claim: runtime.Claim,
    *,
    max_steps: int,
    warmup_steps: int = 1_000,
    preprocess: Callable[[jax.Array], jax.Array] = lambda obs: obs,
    **options: Any,
) -> None:
    """Train a network, judge it greedily and by the training policy, draw its learning and write its returns.

    Args:
      config: of this experiment, or one that adds to it.
      net: the action values.
      claim: what is to be shown.
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
    every = max(1, steps // 200)
    at = np.arange(every, steps + 1, every)
    played = history["episode_return_last100"]
    curves = {f"{config.seeds} seeds, 95% interval": (at * per_step, played[at - 1])}
    path, title = folder.path / "learning_curve.png", f"DQN on {config.env}"
    bounds = returns.return_range(config.env)
    plots.save_curves(path, *plots.RETURN_AXES, curves, title=title, bounds=bounds)
    judged = judge(config, net, state.params, max_steps)
    report(config, folder, claim, judged, returns.first_finite(played))


def report(
    config: Config,
    folder: runtime.RunFolder,
    claim: runtime.Claim,
    judged: dict[str, np.ndarray],
    first: np.ndarray,
) -> None:
    """Write the returns [M] of each way of playing, beside those of the first episodes."""
    solved = returns.SOLVED.get(config.env)
    table = {name: returns.summarise(config.env, last, first, solved) for name, last in judged.items()}
    checks = returns.judge(table["greedy"], solved, None)
    sampled = returns.judge(table[SAMPLED], None, PUBLISHED.get(config.env))
    runtime.write_result(
        folder,
        config,
        claim,
        headline={
            f"greedy return on {config.env}, interquartile mean": table["greedy"]["interquartile mean"]
        },
        baselines={"return of the first episodes": runtime.interquartile_mean(first)},
        checks={f"greedily: {text}": holds for text, holds in checks.items()}
        | {f"with {SAMPLED}: {text}": holds for text, holds in sampled.items()},
        tables={f"return of {config.episodes} episodes a seed after {config.total_env_steps} steps": table},
        figures=["learning_curve.png"],
    )


def main(config: Config) -> None:
    """Train perceptrons, judge them greedily and by the training policy, and write what they return."""
    net = nets.make_q_net(envs.num_actions(config.env), duelling=config.duelling, noisy=config.noisy)
    play(config, net, CLAIM, max_steps=500)


if __name__ == "__main__":
    cli.main(Config, main)
