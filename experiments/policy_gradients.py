"""Policy gradients on the same episodes: what a baseline, a critic of states and one of actions are worth.

Claim (lectures 000, 001, 003: B4 to B14): from REINFORCE with the whole return to reward-to-go, to baselines
and to actor-critics, each estimator has less variance and learns faster; the Q actor-critic, whose actor
follows Q itself, lacks the baseline that A2C has. Every method plays 8 whole episodes of CartPole-v1, cut at
200 steps, and takes one gradient step; nothing but the weight of the log-probabilities differs. The two
actor-critics, which need not wait for an episode's end, run a second time with a step every 8 steps, and
whatever has a critic a second time with ten times the rate for it.

Measured (`python experiments/policy_gradients.py`: 32 seeds, 200 rounds of at most 8 x 200 steps; mean over
seeds with its 95% bootstrap interval, and how many seeds end below half of their best, in stretches of 20
rounds; 6 minutes of 2 CPU cores):

    mean return over all rounds                 rate 0.001         rate 0.003          rate 0.01
    REINFORCE, whole return                    68 [64, 73]  0  119 [110, 129]  0   112 [99, 125]  6
    reward-to-go                            127 [125, 128]  0  167 [165, 168]  0  177 [174, 179]  0
    discounted                              126 [124, 128]  0  164 [162, 166]  0  163 [157, 169]  1
    average baseline                        135 [134, 136]  0  173 [173, 174]  0  189 [189, 190]  0
    learned baseline                          99 [96, 101]  0  160 [158, 161]  0  171 [166, 175]  2
    learned baseline, fast critic           115 [113, 117]  0  167 [165, 168]  0  177 [173, 181]  1
    Q actor-critic                             26 [21, 32] 27     19 [15, 23] 19     17 [13, 22] 14
    Q actor-critic, fast critic                45 [41, 49]  0     61 [55, 68]  7     40 [32, 49] 16
    A2C                                        95 [92, 97]  0  154 [152, 155]  0  173 [169, 177]  0
    A2C, fast critic                        122 [121, 124]  0  165 [163, 167]  0  180 [176, 183]  0
    Q actor-critic, at once                    29 [21, 38]  3     36 [28, 45]  6     18 [12, 25]  9
    Q actor-critic, at once, fast critic     101 [86, 115]  8     45 [37, 54] 21     26 [19, 33] 18
    A2C, at once                            184 [182, 185]  0  189 [187, 191]  0  155 [135, 174] 10
    A2C, at once, fast critic               184 [180, 188]  0  193 [191, 194]  1  176 [158, 190]  6

Reward-to-go and the average baseline help as claimed; the discount alone does not. A learned baseline is
worth less than the other episodes' average, with a fast critic too. A2C pays only where it need not wait, at
rates up to 0.003; at 0.01 it may collapse: of 96 seeds (`--only "A2C, at once" --learning-rates 0.01
--seeds 96`), which return 155 [143, 165], 26 end below half of their best.

The Q actor-critic does not learn here with one rate for both: every action is weighed by a positive number
before Q knows one from the other, and the policy closes on whatever it did first. With ten times the rate for
its critic, and at once, it learns at 0.001, to 116 [95, 135] over the last 20 rounds where A2C is at 199
[196, 200]; at higher rates most of its seeds fall back. So a faster critic mends a part of what the missing
baseline costs, and not the rest.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxrl_align import actors, envs, nets, rl, runtime
from jaxrl_align.checks import check_divides
from jaxrl_align.learner import make_optimizer
from jaxrl_align.runtime import cli, plots
from jaxrl_align.types import Learner, Params

UNDRAWN = {f"{name}, fast critic" for name in ("learned baseline", "Q actor-critic", "A2C", "A2C, at once")}
"""Where a faster critic changes less, for the figure's legend has an end."""


@dataclass(frozen=True)
class Config(runtime.MembersConfig):
    """The estimators side by side."""

    out: str = "runs/policy_gradients"
    seeds: int = 32
    only: tuple[str, ...] = ()
    """The names of methods to run; none is all of them."""
    episodes: int = 8
    """Of each update."""
    time_limit: int = 200
    """Steps after which an episode is cut."""
    updates: int = 200
    """Rounds of episodes."""
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Every method runs at each."""
    critic_factor: float = 10.0
    """How many times the actor's rate the critic's is, in the arms of a faster critic."""
    short_steps: int = 8
    """Of a rollout of the methods that do not wait; divides the time limit."""
    gamma: float = 0.99
    """The discount of a step."""


class Method(NamedTuple):
    """One estimator and how it is run."""

    make: Callable[..., Learner]
    """`(actor, optimizer) -> learner`."""
    critic: Any = "state"
    """What the critic values; see `actors.make_actor`."""
    waits: bool = True
    """Whether rollouts are whole episodes."""
    faster: bool = False
    """Whether the critic's rate is `critic_factor` times the actor's."""


def methods() -> dict[str, Method]:
    """Return the estimators by name, those with a critic also with a faster one."""
    reinforce = lambda **how: functools.partial(rl.make_reinforce, **how)
    found = {
        "REINFORCE, whole return": Method(reinforce(returns="whole")),
        "reward-to-go": Method(reinforce(returns="to_go")),
        "discounted": Method(reinforce(returns="discounted")),
        "average baseline": Method(reinforce(baseline="average")),
    }
    for name, method in {
        "learned baseline": Method(reinforce(baseline="learned")),
        "Q actor-critic": Method(rl.make_q_actor_critic, "sarsa"),
        "A2C": Method(rl.make_a2c),
        "Q actor-critic, at once": Method(rl.make_q_actor_critic, "sarsa", waits=False),
        "A2C, at once": Method(rl.make_a2c, waits=False),
    }.items():
        found |= {name: method, f"{name}, fast critic": method._replace(faster=True)}
    return found


def faster_critic(net: nets.Net, factor: float) -> optax.GradientTransformation:
    """Return the default optimiser with the steps of the net's critic multiplied by `factor`."""

    def scale(updates: Params, _: Params | None = None) -> Params:
        policy, critic = net.split_params(updates)
        return policy | jax.tree.map(lambda update: factor * update, critic)

    return optax.chain(make_optimizer(), optax.stateless(scale))


def play(config: Config, folder: runtime.RunFolder, name: str) -> np.ndarray:
    """Train every seed at every learning rate in one program; return mean returns [updates, rates, seeds].

    NaN where no episode ended. Of a method that does not wait, as many steps make one row.
    """
    method = methods()[name]
    pieces = 1 if method.waits else config.time_limit // config.short_steps
    environment, env_params = envs.make_environment("CartPole-v1")
    env = (environment, env_params.replace(max_steps_in_episode=config.time_limit))
    net = nets.make_actor_critic_net(2, hidden=(32, 32), action_values=method.critic != "state")
    size: dict[str, Any] = {"num_envs": config.episodes, "num_steps": config.time_limit // pieces}
    actor = actors.make_actor(env, net, critic=method.critic, whole_episodes=method.waits, **size)
    learner = method.make(actor, optimizer=faster_critic(net, config.critic_factor if method.faster else 1.0))
    keys, hparams = runtime.cross_rates(
        config.keys(), rl.PolicyGradientHParams(gamma=config.gamma), config.learning_rates
    )
    how = {"folder": folder.sub(name), "label": f"{name:36}", "show": ("episode_return_last100",)}
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
    unknown = set(config.only) - set(methods())
    if unknown:
        raise ValueError(f"only must name methods, {sorted(methods())}; got {sorted(unknown)}")
    folder = config.open_folder()
    results = {name: play(config, folder, name) for name in config.only or methods()}
    last = max(1, config.updates // 10)
    updates = np.arange(1, config.updates + 1)
    table = {}
    for i, rate in enumerate(config.learning_rates):
        print(f"\nlearning rate {rate:g}, {config.seeds} seeds: mean return, all updates and the last {last}")
        for name, returns in results.items():
            parts = np.array_split(returns[:, i], -(-config.updates // last))
            by_time = np.stack([np.nanmean(part, 0) for part in parts])
            whole, final = (runtime.bootstrap_mean(x) for x in (np.nanmean(returns[:, i], 0), by_time[-1]))
            fell = int(runtime.fell_by_half(by_time).sum())
            table[f"{name}, {rate:g}"] = {"mean": whole, "last": final, "fell": fell}
            print(f"  {name:36}{whole!s:>22}{final!s:>22}   {fell} fell by half")
        plots.save_curves(
            folder.path / f"returns_{rate:g}.png",
            f"rounds of {config.episodes} x {config.time_limit} steps",
            "return",
            {name: (updates, x[:, i]) for name, x in results.items() if name not in UNDRAWN},
            title=f"CartPole-v1, learning rate {rate:g}",
            dashed=[name for name in results if "at once" in name],
            ylim=(0, config.time_limit + 5),
        )
    folder.write_json("results.json", table)
    print(f"\nfigures are in {folder.path}")


if __name__ == "__main__":
    cli.main(Config, main)
