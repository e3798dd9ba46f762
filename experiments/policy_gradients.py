"""Policy gradients on the same episodes: what a baseline, a critic of states and one of actions are worth.

Every method plays 8 whole episodes of CartPole-v1, cut at 200 steps, and takes one gradient step; nothing but
the weight of the log-probabilities differs. The two actor-critics, which need not wait for an episode's end,
run a second time with a step every 8 steps, and whatever has a critic a second time with ten times the rate
for it. All run at every learning rate and share their seeds, so that none is chosen; returns are the mean
over all rounds, and a method *falls* on a seed where it ends below half of its own best, in stretches of a
tenth of the rounds.

The Q actor-critic weighs every action by a positive number before Q knows one action from the other, and the
policy closes on whatever it did first: it lacks the baseline that A2C has. A faster critic knows sooner, and
the pull towards whatever was done remains.
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

CLAIM = runtime.Claim(
    "From REINFORCE with the whole return over reward-to-go, discount and baselines to actor-critics, each "
    "estimator learns faster than the one before, and keeps what it learnt.",
    rows=("B4", "B6", "B7", "B8", "B9", "B10", "B11", "B12", "B13", "B14"),
    minutes=6,
)
PAIRS = (
    ("A2C, at once", "REINFORCE, whole return"),
    ("reward-to-go", "REINFORCE, whole return"),
    ("discounted", "reward-to-go"),
    ("average baseline", "discounted"),
    ("learned baseline", "average baseline"),
    ("Q actor-critic", "REINFORCE, whole return"),
    ("A2C", "learned baseline"),
    ("A2C, at once", "A2C"),
    ("A2C, at once", "Q actor-critic, at once"),
    ("Q actor-critic, at once, fast critic", "Q actor-critic, at once"),
    ("A2C, at once, fast critic", "Q actor-critic, at once, fast critic"),
)
"""What is to return more, and than what."""
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


def last_rounds(config: Config) -> int:
    """Return the length of the last stretch, a tenth of all rounds."""
    return max(1, config.updates // 10)


def tabulate(config: Config, results: dict[str, np.ndarray]) -> dict[float, dict[str, dict[str, Any]]]:
    """Return by learning rate a row for each method: returns, and how many seeds fall."""
    last = last_rounds(config)
    tables: dict[float, dict[str, dict[str, Any]]] = {}
    for i, rate in enumerate(config.learning_rates):
        tables[rate] = {}
        for name, returns in results.items():
            parts = np.array_split(returns[:, i], -(-config.updates // last))
            by_time = np.stack([np.nanmean(part, 0) for part in parts])
            tables[rate][name] = {
                "all rounds": runtime.bootstrap_mean(np.nanmean(returns[:, i], 0)),
                f"last {last}": runtime.bootstrap_mean(by_time[-1]),
                "fall": int(runtime.fell_by_half(by_time).sum()),
            }
    return tables


def differences(config: Config, results: dict[str, np.ndarray]) -> dict[str, dict[str, runtime.Interval]]:
    """Return for each pair of which both were run the paired difference of returns at every rate."""
    whole = {name: np.nanmean(returns, 0) for name, returns in results.items()}
    paired = functools.partial(runtime.paired_interval, bounds=(-config.time_limit, config.time_limit))
    return {
        f"{more} less {less}": {
            f"rate {rate:g}": paired(whole[more][i], whole[less][i])
            for i, rate in enumerate(config.learning_rates)
        }
        for more, less in PAIRS
        if more in whole and less in whole
    }


def judge(
    config: Config,
    tables: dict[float, dict[str, dict[str, Any]]],
    gains: dict[str, dict[str, runtime.Interval]],
) -> dict[str, bool]:
    """Return which parts of the claim are shown, of those whose methods were run."""
    rows = [row for table in tables.values() for row in table.values()]
    falls = [runtime.wilson_interval(row["fall"], config.seeds) for row in rows]
    checks = {
        f"{pair.replace(' less ', ' returns more than ')}, at every rate": all(
            gain.low > 0 for gain in by_rate.values()
        )
        for pair, by_rate in gains.items()
    }
    return checks | {
        "every method keeps what it learnt: it falls on fewer than a fifth of the seeds, at every rate": all(
            share.high < 0.2 for share in falls
        )
    }


def headline_of(
    config: Config,
    tables: dict[float, dict[str, dict[str, Any]]],
    gains: dict[str, dict[str, runtime.Interval]],
) -> tuple[dict[str, runtime.Interval], dict[str, runtime.Interval]]:
    """Return the first difference, or where no pair was run the first return, and what it is held against."""
    rate = config.learning_rates[0]
    returns = {f"return of {name} at rate {rate:g}": row["all rounds"] for name, row in tables[rate].items()}
    if not gains:
        name, value = next(iter(returns.items()))
        return {name: value}, {}
    pair = next(iter(gains))
    less = f"return of {pair.partition(' less ')[2]} at rate {rate:g}"
    headline = {f"return of {pair} at rate {rate:g}, paired": gains[pair][f"rate {rate:g}"]}
    return headline, {less: returns[less]}


def draw(config: Config, folder: runtime.RunFolder, results: dict[str, np.ndarray], i: int) -> str:
    """Draw the returns at the i-th learning rate; return the file's name."""
    rate, updates = config.learning_rates[i], np.arange(1, config.updates + 1)
    file = f"returns_{rate:g}.png"
    plots.save_curves(
        folder.path / file,
        f"rounds of {config.episodes} x {config.time_limit} steps",
        "return",
        {name: (updates, x[:, i]) for name, x in results.items() if name not in UNDRAWN},
        title=f"CartPole-v1, learning rate {rate:g}",
        dashed=[name for name in results if "at once" in name],
        bounds=(0, config.time_limit),
        ylim=(0, config.time_limit + 5),
    )
    return file


def main(config: Config) -> None:
    """Train all methods, draw and write their returns; a part of them is evidence for no lecture's row."""
    config.require(seeds=2, updates=1, episodes=2)
    check_divides(config.short_steps, config.time_limit, "short_steps", "time_limit")
    unknown = set(config.only) - set(methods())
    if unknown:
        raise ValueError(f"only must name methods, {sorted(methods())}; got {sorted(unknown)}")
    folder = config.open_folder()
    results = {name: play(config, folder, name) for name in config.only or methods()}
    figures = [draw(config, folder, results, i) for i in range(len(config.learning_rates))]
    tables, gains = tabulate(config, results), differences(config, results)
    headline, baselines = headline_of(config, tables, gains)
    paired = {"return over all rounds, paired by seed": gains} if gains else {}
    runtime.write_result(
        folder,
        config,
        CLAIM._replace(rows=()) if config.only else CLAIM,
        headline=headline,
        baselines=baselines,
        checks=judge(config, tables, gains),
        tables=paired | {f"rate {x:g}: returns; seeds that fall": table for x, table in tables.items()},
        figures=figures,
    )


if __name__ == "__main__":
    cli.main(Config, main)
