"""Policy gradients on the same episodes: what a baseline, a critic of states and one of actions are worth.

Claim (lectures 000, 001, 003: B4 to B14): from REINFORCE with the whole return to reward-to-go, to baselines
and to actor-critics, each estimator has less variance and learns faster; the Q actor-critic, whose actor
follows Q itself, lacks the baseline that A2C has. Every method plays 8 whole episodes of CartPole-v1, cut at
200 steps, and takes one gradient step; nothing but the weight of the log-probabilities differs. The two
actor-critics, which need not wait for an episode's end, run a second time with a step every 8 steps.

Measured (`python experiments/policy_gradients.py`: 8 seeds, 200 rounds of at most 8 x 200 steps; mean return
with its 95% t interval; 2 shared CPU cores, 4 to 6 minutes):

    mean over all rounds         rate 0.001     rate 0.003      rate 0.01
    REINFORCE, whole return     66.2 +- 9.3  116.3 +- 28.8  106.8 +- 31.8
    reward-to-go               126.9 +- 3.4   164.8 +- 3.9  171.2 +- 11.8
    discounted                 126.4 +- 4.5   161.6 +- 7.5   172.0 +- 8.6
    average baseline           134.5 +- 2.0   172.4 +- 1.3   188.9 +- 1.3
    learned baseline            99.2 +- 5.4   159.3 +- 3.7  167.9 +- 13.4
    Q actor-critic             25.0 +- 12.2   18.4 +- 10.5   16.5 +- 11.9
    A2C                         94.2 +- 3.6   153.0 +- 4.7   176.2 +- 5.1
    Q actor-critic, at once    23.6 +- 19.9   41.9 +- 29.6   28.2 +- 25.0
    A2C, at once               184.2 +- 3.6   187.2 +- 9.2   83.9 +- 56.3

    over the last 20             rate 0.001     rate 0.003      rate 0.01
    REINFORCE, whole return   112.6 +- 34.1  155.3 +- 41.3  117.1 +- 39.4
    reward-to-go               195.6 +- 1.4  186.5 +- 16.4  185.6 +- 22.9
    discounted                 193.8 +- 2.6  182.6 +- 22.5  184.7 +- 23.3
    average baseline           199.3 +- 0.5   200.0 +- 0.1   200.0 +- 0.0
    learned baseline           178.9 +- 5.6   198.6 +- 1.6  175.0 +- 37.8
    Q actor-critic              17.3 +- 8.5   14.3 +- 11.6   16.6 +- 14.2
    A2C                        173.4 +- 5.2  184.4 +- 14.9   198.9 +- 2.4
    Q actor-critic, at once    29.6 +- 31.9   47.9 +- 46.7   26.0 +- 27.0
    A2C, at once               199.0 +- 2.4  188.0 +- 28.3   49.1 +- 58.8

Reward-to-go and the average baseline help as claimed; the discount alone does not. A critic that must first
be learned, by 200 gradient steps, is worth less than the other episodes' average, and A2C pays only where it
need not wait: at rates up to 0.003, for at 0.01 a quarter of its seeds collapse (51 of 192 others; eight that
were drawn before returned 190.6 +- 4.5, by luck). The Q actor-critic as the lectures write it does not learn
here, nor at rates of 0.0001 and 0.0003 (at once: 26.9 +- 17.2 and 30.1 +- 16.5 over all rounds): every action
is weighed by a positive number before Q knows one from the other, and the policy closes on whatever it did
first.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrl_align import actors, envs, nets, rl, runtime
from jaxrl_align.checks import check_divides
from jaxrl_align.runtime import cli, plots, statistics
from jaxrl_align.types import Actor, Learner


@dataclass(frozen=True)
class Config(runtime.MembersConfig):
    """The estimators side by side."""

    out: str = "runs/policy_gradients"
    episodes: int = 8
    """Of each update."""
    time_limit: int = 200
    updates: int = 200
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Every method runs at each."""
    short_steps: int = 8
    """Of a rollout of the methods that do not wait; divides the time limit."""
    gamma: float = 0.99


def methods() -> dict[str, tuple[Callable[[Actor], Learner], str, bool]]:
    """Return by name `actor -> learner`, the critic's kind, and whether rollouts are whole episodes."""
    reinforce = lambda **how: functools.partial(rl.make_reinforce, **how)
    return {
        "REINFORCE, whole return": (reinforce(returns="whole", baseline="none"), "state", True),
        "reward-to-go": (reinforce(returns="to_go", baseline="none"), "state", True),
        "discounted": (reinforce(returns="discounted", baseline="none"), "state", True),
        "average baseline": (reinforce(returns="discounted", baseline="average"), "state", True),
        "learned baseline": (reinforce(returns="discounted", baseline="learned"), "state", True),
        "Q actor-critic": (rl.make_q_actor_critic, "sarsa", True),
        "A2C": (rl.make_a2c, "state", True),
        "Q actor-critic, at once": (rl.make_q_actor_critic, "sarsa", False),
        "A2C, at once": (rl.make_a2c, "state", False),
    }


def play(config: Config, folder: runtime.RunFolder, name: str) -> np.ndarray:
    """Train every seed at every learning rate in one program; return mean returns [updates, rates, seeds].

    NaN where no episode ended. Of a method that does not wait, as many steps make one row.
    """
    make, critic, waits = methods()[name]
    pieces = 1 if waits else config.time_limit // config.short_steps
    environment, env_params = envs.make_environment("CartPole-v1")
    env = (environment, env_params.replace(max_steps_in_episode=config.time_limit))
    net = nets.make_actor_critic_net(2, hidden=(32, 32), action_values=critic != "state")
    size: dict[str, Any] = {"num_envs": config.episodes, "num_steps": config.time_limit // pieces}
    learner = make(actors.make_actor(env, net, critic=critic, whole_episodes=waits, **size))
    keys, hparams = runtime.cross_rates(
        config.keys(), rl.PolicyGradientHParams(gamma=config.gamma), config.learning_rates
    )
    how = {"folder": folder.sub(name), "label": f"{name:24}", "show": ("episode_return_last100",)}
    history = runtime.train_members(
        learner, hparams, config, config.updates * pieces, keys=keys, **how
    ).history
    shape = (config.updates, pieces, len(config.learning_rates), config.seeds)
    total, count = (history[name].reshape(shape).sum(1) for name in ("episode_return_sum", "episodes"))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def main(config: Config) -> None:
    """Train all methods, print and draw their returns."""
    config.require(seeds=2, updates=1, episodes=2)
    check_divides(config.short_steps, config.time_limit, "short_steps", "time_limit")
    runtime.use_cpu_devices()
    folder = config.open_folder()
    results = {name: play(config, folder, name) for name in methods()}
    last = max(1, config.updates // 10)
    updates = np.arange(1, config.updates + 1)
    table = {}
    for i, rate in enumerate(config.learning_rates):
        print(f"\nlearning rate {rate:g}, {config.seeds} seeds: mean return, all updates and the last {last}")
        for name, returns in results.items():
            whole, final = (np.nanmean(x[:, i], 0) for x in (returns, returns[-last:]))
            row = {"mean": statistics.mean_interval(whole), "last": statistics.mean_interval(final)}
            table[f"{name}, {rate:g}"] = row
            print(f"  {name:24}{statistics.mean_text(whole):>18}{statistics.mean_text(final):>18}")
        plots.save_curves(
            folder.path / f"returns_{rate:g}.png",
            f"rounds of {config.episodes} x {config.time_limit} steps",
            "return",
            {name: (updates, returns[:, i]) for name, returns in results.items()},
            title=f"CartPole-v1, learning rate {rate:g}",
            dashed=[name for name in results if name.endswith("at once")],
            legend="center right",
        )
    folder.write_json("results.json", table)
    print(f"\nfigures are in {folder.path}")


if __name__ == "__main__":
    cli.main(Config, main)
