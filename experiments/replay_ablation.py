"""What replay changes: CartPole learnt online, from the latest steps, by uniform and by prioritised replay.

Four learners differ only in their memory (the same Adam, one update an environment step): none (Algorithm 4,
one transition an update), the latest 32 steps, 32 draws from everything seen (Algorithm 1), and prioritised
draws. Each has the learning rate that was best of four on other seeds than are reported. As in the lecture's
algorithms there is no target network, unless --target-period 100 asks for one, which Algorithm 4 cannot have.
Returns are those of the last quarter of training.

The gradients' correlation is measured after training, at fixed parameters, in the order in which the learner
would meet the samples: the correlation of successive updates, and how many times the variance of a mean over
32 samples exceeds that of 32 independent ones. For the two that remember everything it is measured again over
the same memory in order of time.

The latest 32 steps are as correlated as the lecture says, and yet a batch: what replay of everything gains
over them is what decorrelation is worth, and what it gains over Algorithm 4 is the batch's too. A learner
that fails online repeats episodes of ten steps, whose ends alone have errors, so that its successive
gradients need not be positively correlated (see the figure's peaks).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import returns

from jaxrl_align import envs, runtime
from jaxrl_align.actors.value import make_value_actor
from jaxrl_align.learner import make_optimizer
from jaxrl_align.losses import squared
from jaxrl_align.nets.q_networks import make_q_net
from jaxrl_align.rl.dqn import DQNHParams, Exploration, make_dqn, make_online_q, td_loss, transition_loss
from jaxrl_align.rl.replay import Sample, make_replay
from jaxrl_align.runtime import cli, plots
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import MembersConfig, cross_rates, train_members
from jaxrl_align.types import Actor, Learner, State, Transition

CLAIM = runtime.Claim(
    "Online Q-learning suffers from samples that are correlated and not identically distributed; replay "
    "mends that, and this is why it helps.",
    rows=("A9", "A13", "A14", "A15"),
    minutes=3,
)
ARMS = ("online", "latest", "uniform", "prioritised")
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
LAGS = 32
RETURN = ("episode_return_last100",)


@dataclass(frozen=True)
class Config(MembersConfig):
    """One environment and one update a step, for every arm."""

    out: str = "runs/replay_ablation"
    env: str = "CartPole-v1"
    """A gymnax name."""
    seeds: int = 16
    """Of each arm at its learning rate."""
    choosing_seeds: int = 4
    """Others, of every learning rate, on which an arm's is chosen."""
    total_env_steps: int = 60_000
    """Of each member."""
    batch_size: int = 32
    """Transitions of a gradient step."""
    hidden: int = 64
    """Width of each of the two hidden layers."""
    target_period: int = 1
    """Updates between two copies of the target network; 1 is no target network."""
    epsilon_steps: int = 10_000
    """Environment steps over which the share of random actions falls."""
    batches: int = 64
    """Batches of gradients from which correlations are measured."""


def make_arm(config: Config, name: str, actor: Actor) -> Learner:
    """Build one arm's learner."""
    optimizer = make_optimizer(max_grad_norm=10.0, eps=1e-8)
    if name == "online":
        return make_online_q(actor, optimizer=optimizer)
    return make_dqn(actor, optimizer=optimizer, warmup_steps=config.batch_size, **memory(config, name))


def memory(config: Config, name: str) -> dict[str, Any]:
    """Return the replay's arguments."""
    latest = name == "latest"
    return {
        "capacity": config.batch_size if latest else config.total_env_steps + config.batch_size,
        "batch_size": config.batch_size,
        "prioritised": name == "prioritised",
    }


def train(
    config: Config, name: str, learner: Learner, folder: RunFolder
) -> tuple[State, np.ndarray, np.ndarray]:
    """Choose the rate on other seeds than are reported, and train these at it.

    Returns:
      The reported members, their returns [steps, seeds], and the other seeds' mean late return of each rate.
    """
    hparams = DQNHParams(
        target_period=config.target_period,
        epsilon_steps=config.epsilon_steps,
        beta_steps=config.total_env_steps,
    )

    def run(keys: jax.Array, rates: tuple[float, ...], part: str) -> tuple[State, np.ndarray]:
        keys, tried = cross_rates(keys, hparams, rates)
        how = {"folder": folder.sub(f"{name}_{part}"), "label": f"{name:12}", "show": RETURN}
        trained = train_members(learner, tried, config, config.total_env_steps, keys=keys, **how)
        return trained.state, trained.history[RETURN[0]]

    others = jax.random.split(jax.random.key(config.seed + 1), config.choosing_seeds)
    choices = late(run(others, RATES, "choice")[1]).reshape(len(RATES), -1).mean(1)
    state, returns = run(config.keys(), (RATES[int(choices.argmax())],), "report")
    return state, returns, choices


def late(returns: np.ndarray) -> np.ndarray:
    """Return the means over the last quarter of training, [M] of [steps, M]."""
    return returns[-max(1, len(returns) // 4) :].mean(0)


def stream(config: Config, name: str, actor: Actor, learner: Learner, state: State) -> Sample:
    """Return the transitions that one member would meet next, [batches, batch_size], learning nothing."""
    still = state._replace(hparams=state.hparams._replace(learning_rate=jnp.zeros(())))
    if name == "online":
        # The state that an online learner keeps includes no transition, so the actor plays them again.
        explore = Exploration(state.hparams.epsilon_end)
        play = lambda s, key: actor.rollout(state.params, None, s, key, explore)[:2]
        keys = jax.random.split(state.key, config.batches * config.batch_size)
        _, steps = jax.lax.scan(play, state.env_state.envs, keys)
        steps = jax.tree.map(lambda x: x.reshape(config.batches, config.batch_size, *x.shape[3:]), steps)
        return to_samples(steps, state.hparams.gamma)
    replay = make_replay(**memory(config, name))

    def draw(state: State, _: None) -> tuple[State, Sample]:
        state, metrics = learner.step(state)
        key_draw, key = jax.random.split(state.key)
        batch = replay.sample(state.env_state.replay, key_draw, state.hparams.gamma, metrics["beta"])
        return state._replace(key=key), batch

    return jax.lax.scan(draw, still, None, config.batches)[1]


def by_time(config: Config, state: State) -> Sample:
    """Return one member's latest transitions in the order they were made, [batches, batch_size]."""
    replay, count = state.env_state.replay, config.batches * config.batch_size
    rows = (replay.head - count + jnp.arange(count)) % replay.data.reward.shape[0]
    data = jax.tree.map(
        lambda x: x[rows].reshape(config.batches, config.batch_size, *x.shape[1:]), replay.data
    )
    return to_samples(data, state.hparams.gamma)


def to_samples(steps: Transition, gamma: jax.Array) -> Sample:
    """Return single transitions as samples of weight 1."""
    one, discount = jnp.ones_like(steps.reward), gamma * (1.0 - steps.terminated)
    return Sample(steps.obs, steps.action, steps.reward, discount, steps.next_obs, one, one)


def correlations(actor: Actor, params: Any, samples: Sample, single: bool) -> dict[str, jax.Array]:
    """Measure how the gradients [batches, batch_size] of one member hang together.

    Args:
      actor: judges.
      params: of the member, fixed.
      samples: in the order the learner meets them.
      single: whether an update is made from each sample rather than from each batch.
    """
    one = transition_loss(actor, td_loss(squared))

    def gradient(sample: Sample) -> jax.Array:
        grads = jax.grad(lambda p: one(p, params, None, sample, jax.random.key(0))[0])(params)
        return sample.weight * jnp.concatenate([x.ravel() for x in jax.tree.leaves(grads)])

    g = jax.vmap(jax.vmap(gradient))(samples)
    centred = g - g.mean((0, 1), keepdims=True)
    variance = jnp.mean(jnp.sum(centred**2, -1))
    means = centred.mean(1)
    line = centred.reshape(-1, g.shape[-1])
    lagged = lambda x, k: jnp.mean(jnp.sum(x[:-k] * x[k:], -1)) / jnp.mean(jnp.sum(x**2, -1))
    return {
        "successive updates": lagged(line if single else means, 1),
        "variance of 32": g.shape[1] * jnp.mean(jnp.sum(means**2, -1)) / variance,
        "by lag": jnp.stack([lagged(line, k) for k in range(1, LAGS + 1)]),
    }


def measure(config: Config, name: str, actor: Actor, learner: Learner, state: State) -> dict[str, np.ndarray]:
    """Return the correlations of every member of one arm, each [M] or [M, LAGS]."""

    def member(state: State) -> dict[str, jax.Array]:
        samples = stream(config, name, actor, learner, state)
        measured = correlations(actor, state.params, samples, name == "online")
        if name in ("uniform", "prioritised"):
            in_time = correlations(actor, state.params, by_time(config, state), True)
            measured |= {f"{what}, in time": x for what, x in in_time.items()}
        return measured

    # One member at a time: the gradients of one take some tens of megabytes.
    return jax.device_get(jax.jit(lambda s: jax.lax.map(member, s))(state))


RETURN_OF, AFTER, VARIANCE = "return", "successive updates", "variance of 32"
TABLE = (
    "return; correlation of successive updates; variance of 32 samples' mean over that of independent ones"
)
PAIRED = "return, paired by seed"


def row_of(
    config: Config, measured: dict[str, np.ndarray], played: np.ndarray, choices: np.ndarray
) -> dict[str, Any]:
    """Return an arm's row: its rate, its late returns and its correlations, with their intervals."""
    bounds = {
        AFTER: (-1.0, 1.0),
        VARIANCE: (0.0, float(config.batch_size)),
        RETURN_OF: returns.return_range(config.env),
    }
    numbers = {RETURN_OF: late(played)} | measured
    return {"learning rate": f"{RATES[int(choices.argmax())]:g}"} | {
        what: runtime.t_interval(x, bounds=bounds[what.partition(",")[0]]) for what, x in numbers.items()
    }


def judge(table: dict[str, dict[str, Any]], gains: dict[str, dict[str, runtime.Interval]]) -> dict[str, bool]:
    """Return which parts of the claim the arms' rows and the paired differences of their returns show."""
    latest, uniform = table["latest"], table["uniform"]
    less = {pair: row["difference"] for pair, row in gains.items()}
    return {
        "online, the gradients of successive samples are correlated": table["online"][AFTER].low > 0,
        "so are successive updates from the latest steps": latest[AFTER].low > 0,
        "a batch of the latest steps is worth fewer independent samples": latest[VARIANCE].low > 1,
        "draws from everything seen are as good as independent: within a quarter": (
            0.75 < uniform[VARIANCE].low <= uniform[VARIANCE].high < 1.25
            and -0.25 < uniform[AFTER].low <= uniform[AFTER].high < 0.25
        ),
        "uniform replay returns more than no memory": less["uniform less online"].low > 0,
        "it returns more than the latest steps, which are a batch too": less["uniform less latest"].low > 0,
        "prioritised replay returns more than uniform": less["prioritised less uniform"].low > 0,
    }


def draw(
    config: Config, folder: RunFolder, played: dict[str, np.ndarray], lags: dict[str, np.ndarray]
) -> None:
    """Draw learning curves, and correlations [M, LAGS] by how far samples are apart."""
    every = max(1, config.total_env_steps // 200)
    at = np.arange(every, config.total_env_steps + 1, every)
    curves = {name: (at, x[at - 1]) for name, x in played.items()}
    title = f"{config.env}: online, and with replay"
    how = {"title": title, "bounds": returns.return_range(config.env)}
    plots.save_curves(folder.path / "learning_curve.png", *plots.RETURN_AXES, curves, **how)
    apart = {f"{name}, {config.seeds} seeds": (np.arange(1, LAGS + 1), x.T) for name, x in lags.items()}
    title, labels = "In the order the learner meets them", ("samples apart", "correlation of gradients")
    plots.save_curves(folder.path / "correlation.png", *labels, apart, title=title, bounds=(-1, 1))


def main(config: Config) -> None:
    """Train each arm, measure its gradients, draw and write what was found."""
    net = make_q_net(envs.num_actions(config.env), (config.hidden, config.hidden))
    actor = make_value_actor(config.env, net, num_envs=1, num_steps=1)
    folder = config.open_folder()
    played, lags, table, chosen = {}, {}, {}, {}
    for name in ARMS:
        learner = make_arm(config, name, actor)
        state, played[name], choices = train(config, name, learner, folder)
        measured = measure(config, name, actor, learner, state)
        for suffix in ("", ", in time"):
            if f"by lag{suffix}" in measured:
                lags[f"{name}'s{suffix}" if suffix else name] = measured.pop(f"by lag{suffix}")
        table[name] = row_of(config, measured, played[name], choices)
        chosen[name] = dict(zip((f"rate {rate:g}" for rate in RATES), choices.tolist(), strict=True))
    draw(config, folder, played, lags)
    paired = lambda more, less: runtime.paired_interval(
        late(played[more]), late(played[less]), bounds=returns.difference_range(config.env)
    )
    pairs = (("uniform", "latest"), ("uniform", "online"), ("prioritised", "uniform"))
    gains = {f"{more} less {less}": {"difference": paired(more, less)} for more, less in pairs}
    others = f"return on the {config.choosing_seeds} other seeds that chose the rate"
    runtime.write_result(
        folder,
        config,
        CLAIM,
        headline={
            "return of uniform replay less the latest steps', paired": gains["uniform less latest"][
                "difference"
            ]
        },
        baselines={f"return, {name}": table[name][RETURN_OF] for name in ("latest", "online")},
        checks=judge(table, gains),
        tables={TABLE: table, PAIRED: gains, others: chosen},
        figures=["learning_curve.png", "correlation.png"],
    )


if __name__ == "__main__":
    cli.main(Config, main)
