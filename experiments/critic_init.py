"""The critic of RLHF from the reward model, against a critic from zero.

The lecture's critic starts as the reward model (lecture 002, F14). It reads prefixes here, since a critic of
whole answers leaves no gradient (erratum H6), with the policy's trunk or with one of its own. The stages
before are those of `rlhf.py`, smaller. Every critic's learning rate is chosen, by the steps to a mean score
of 1, on 4 seeds; 8 others are reported. Besides what a critic explains of the rewards-to-go at step 0 stands
the squared correlation, which is what the best affine map of its values would explain.

This reward model was trained on whole answers alone, so its score of an unfinished one need not be that
prefix's value. The largest rate tried may be the best for all; rates above it and reward models trained on
prefixes were not tried.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rlhf
from rates import rates_table
from rlhf_setup import Setup
from stages import StagesConfig

from jaxrl_align.actors.text import Frozen, make_text_actor
from jaxrl_align.align import RLHFHParams, init_policy, make_rlhf_learner, model_reward
from jaxrl_align.losses import masked_mean, reward_to_go
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.rl.actor_critic import Batch, explained_variance
from jaxrl_align.runtime import (
    Claim,
    Interval,
    RunFolder,
    cli,
    paired_interval,
    plots,
    t_interval,
    write_result,
)
from jaxrl_align.runtime.members import train_members
from jaxrl_align.runtime.mesh import use_cpu_devices

CLAIM = Claim(
    "RLHF's critic starts as the reward model: it knows something of what follows from the first step on, "
    "and the policy reaches a given score in fewer steps than from a critic of zero.",
    rows=("F14", "H6"),
    minutes=12,
)
Trunk = Literal["shared", "separate"]
TRUNKS: tuple[Trunk, ...] = ("shared", "separate")
STARTS = ("zero", "reward model")
WINDOW = 5
"""Steps of RLHF over which the score is averaged before it is compared with the target."""


@dataclass(frozen=True)
class Config(StagesConfig):
    """The stages before RLHF, and the critics that are compared."""

    out: str = "runs/critic_init"
    seeds: int = 12
    tuning_seeds: int = 4
    layers: int = 2
    rlhf_steps: int = 80
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    """Tried for each critic; policy and critic learn at the same one."""
    target: float = 1.0
    """Mean score to reach, in deviations of the supervised policy's answers, whose mean is 0."""
    measured_prompts: int = 256
    """Answered by the first policy to measure what each critic explains."""

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes of training."""
        super().__post_init__()
        self.require(measured_prompts=2)


class Run(NamedTuple):
    """One member of the comparison."""

    start: str
    rate: float
    seed: int


def critic_of(setup: Setup, trunk: Trunk) -> Any:
    """Return the language model of a critic with its own trunk; None for one on the policy's."""
    return setup.lm if trunk == "separate" else None


def first_policies(setup: Setup, trunk: Trunk, models: Frozen) -> dict[str, Any]:
    """Return every seed's policy and critic before RLHF, by where the critic starts."""
    start = jax.vmap(functools.partial(init_policy, setup.lm, trunk=trunk))
    return {"zero": start(models.reference), "reward model": start(models.reference, models.reward_model)}


def explain(setup: Setup, trunk: Trunk, params: Any, models: Frozen) -> np.ndarray:
    """Return what each seed's critic knows of the rewards-to-go at step 0, [2, M].

    First the share of their variance that it explains, then the squared correlation, which is the share that
    the best affine map of its values would explain. The target bootstraps from no value, so that it flatters
    no critic; at step 0 there is no KL penalty.
    """
    prompts = sample_rows(setup.prompts, batch_size=setup.config.measured_prompts)
    actor = make_text_actor(
        setup.lm, model_reward(setup.lm), setup.text, prompts, critic=critic_of(setup, trunk)
    )
    hparams = RLHFHParams()

    def one(params: Any, frozen: Frozen, key: jax.Array) -> jax.Array:
        start = actor.init_env(key, hparams)
        trajectory = actor.rollout(params, frozen, start, key, hparams, None)[1]
        to_go = jax.vmap(reward_to_go)(trajectory.reward)
        mean = lambda x: masked_mean(x, trajectory.mask)
        value, target = (x - mean(x) for x in (trajectory.value, to_go))
        most = mean(value * target) ** 2 / jnp.maximum(mean(value**2) * mean(target**2), 1e-12)
        return jnp.stack([explained_variance(Batch(trajectory, to_go, to_go)), most])

    return np.asarray(jax.jit(jax.vmap(one))(params, models, setup.keys(20))).T


def race(
    setup: Setup, folder: RunFolder, trunk: Trunk, models: Frozen, runs: Sequence[Run]
) -> dict[str, np.ndarray]:
    """Train all runs with one kind of trunk in one program; return each metric as [runs, steps]."""
    config, starts = setup.config, first_policies(setup, trunk, models)
    learner = make_rlhf_learner(
        setup.lm,
        model_reward(setup.lm),
        setup.text,
        sample_rows(setup.prompts, batch_size=config.prompts_per_step),
        epochs=config.epochs,
        minibatches=config.minibatches,
        total_steps=config.rlhf_steps,
        critic=critic_of(setup, trunk),
    )
    seeds, rates = (jnp.array([getattr(run, name) for run in runs]) for name in ("seed", "rate"))
    pick = lambda *leaves: jnp.stack([leaves[STARTS.index(run.start)][run.seed] for run in runs])
    hparams = RLHFHParams(rates, kl_coef=config.kl_coef, kl_target=config.kl_target)
    how = {"keys": setup.keys(6)[seeds], "params": jax.tree.map(pick, *(starts[name] for name in STARTS))}
    how |= {"frozen": jax.tree.map(lambda x: x[seeds], models), "folder": folder, "chunk": 10}
    how |= {"label": f"RLHF, {trunk} trunk", "show": ("objective/scores", "val/explained_variance")}
    history = train_members(learner, hparams, config, config.rlhf_steps, **how).history
    return {name: np.asarray(values).T for name, values in history.items()}


def smooth(score: np.ndarray) -> np.ndarray:
    """Return the running mean of scores [..., steps] over the last `WINDOW` steps, fewer at the start."""
    total = np.cumsum(np.pad(score, [(0, 0)] * (score.ndim - 1) + [(1, 0)]), -1)
    first = np.maximum(np.arange(score.shape[-1]) + 1 - WINDOW, 0)
    return (total[..., 1:] - total[..., first]) / (np.arange(score.shape[-1]) + 1 - first)


def steps_to(score: np.ndarray, target: float) -> np.ndarray:
    """Return how many steps of scores [..., steps] it takes to the target; their number if it is missed."""
    reached = smooth(score) >= target
    return np.where(reached.any(-1), reached.argmax(-1) + 1, score.shape[-1])


def compare(setup: Setup, folder: RunFolder, trunk: Trunk, models: Frozen) -> dict[str, Any]:
    """Choose each critic's rate on the tuning seeds, and train the others at it.

    Returns:
      `tried`, steps to the target [starts, rates, tuning seeds]; `rates` [starts]; `explained`
      [starts, 2, M], as `explain` returns it; and `score`, `value` (what the critic explains of its own
      targets), each [starts, M, steps].
    """
    config = setup.config
    tuning, seeds = range(config.tuning_seeds), range(config.tuning_seeds, config.seeds)
    runs = [Run(*run) for run in itertools.product(STARTS, config.learning_rates, tuning)]
    score = race(setup, folder.sub(f"tuning {trunk}"), trunk, models, runs)["objective/scores"]
    shape = (len(STARTS), len(config.learning_rates), config.tuning_seeds, config.rlhf_steps)
    tried = steps_to(score.reshape(shape), config.target)
    rates = [config.learning_rates[i] for i in tried.mean(-1).argmin(-1)]
    runs = [Run(start, rate, seed) for start, rate in zip(STARTS, rates, strict=True) for seed in seeds]
    history = race(setup, folder.sub(f"reported {trunk}"), trunk, models, runs)
    shape = (len(STARTS), len(seeds), config.rlhf_steps)
    score, value = (history[name].reshape(shape) for name in ("objective/scores", "val/explained_variance"))
    policies = first_policies(setup, trunk, models)
    explained = [explain(setup, trunk, policies[start], models)[:, config.tuning_seeds :] for start in STARTS]
    return {"tried": tried, "rates": rates, "explained": explained, "score": score, "value": value}


def measures(config: Config) -> dict[str, tuple[float, float]]:
    """Return the columns of the comparison and what each can be."""
    return {
        "explained, step 0": (-np.inf, 1.0),
        "correlation^2, step 0": (0.0, 1.0),
        "steps to the target": (1.0, config.rlhf_steps),
        f"score, last {WINDOW} steps": (-np.inf, np.inf),
    }


def tabulate(config: Config, found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return one trunk's table: both starts and their difference, paired by seed."""
    bounds, rows, table = measures(config), [], {}
    for start, score, explained in zip(STARTS, found["score"], found["explained"], strict=True):
        last = smooth(score)
        rows.append(dict(zip(bounds, (*explained, steps_to(score, config.target), last[:, -1]), strict=True)))
        table[start] = {name: t_interval(x, bounds=bounds[name]) for name, x in rows[-1].items()}
        table[start] |= {"missed": int((last < config.target).all(-1).sum())}
    width = {name: high - low for name, (low, high) in bounds.items()}
    zero, given = rows
    return table | {
        f"{STARTS[1]} less {STARTS[0]}": {
            name: paired_interval(given[name], zero[name], bounds=(-width[name], width[name]))
            for name in bounds
        }
    }


def judge(explained: dict[Trunk, Interval], saved: dict[Trunk, Interval]) -> dict[str, bool]:
    """Return which parts of the claim hold, with either trunk.

    Args:
      explained: share of the rewards-to-go that the critic explains at step 0.
      saved: steps to the target, less those from zero.
    """
    return {
        f"the start explains some of what follows, {trunk} trunk": x.low > 0 for trunk, x in explained.items()
    } | {f"it saves steps, {trunk} trunk": x.high < 0 for trunk, x in saved.items()}


def report(config: Config, folder: RunFolder, found: dict[Trunk, dict[str, Any]]) -> None:
    """Draw both curves and write the result."""
    curves: dict[str, dict[str, Any]] = {"score": {}, "value": {}}
    x, seeds = np.arange(config.rlhf_steps), config.seeds - config.tuning_seeds
    for trunk, (i, start) in itertools.product(TRUNKS, enumerate(STARTS)):
        for name, by_name in curves.items():
            by_name[f"{start}, {trunk} trunk"] = x, smooth(found[trunk][name][i]).T
    for name, label in (("score", "score"), ("value", "explained variance of the critic's targets")):
        title = f"Where the critic starts, {seeds} seeds"
        how = {"title": title, "bounds": (-np.inf, 1 if name == "value" else np.inf)}
        plots.save_curves(folder.path / f"{name}.png", "steps of RLHF", label, curves[name], **how)
    folder.write_json("values.json", found)
    tables = {trunk: tabulate(config, found[trunk]) for trunk in TRUNKS}
    tried = {
        f"{trunk} trunk, {start}": dict(
            zip(config.learning_rates, found[trunk]["tried"][i].mean(-1), strict=True)
        )
        for trunk, (i, start) in itertools.product(TRUNKS, enumerate(STARTS))
    }
    taken = dict(zip(tried, (rate for trunk in TRUNKS for rate in found[trunk]["rates"]), strict=True))
    explained, _, steps, _ = measures(config)
    less = f"{STARTS[1]} less {STARTS[0]}"
    saved = {trunk: table[less][steps] for trunk, table in tables.items()}
    write_result(
        folder,
        config,
        CLAIM,
        headline={
            f"steps to a score of {config.target:g}, {less}, {trunk} trunk, paired": gain
            for trunk, gain in saved.items()
        },
        baselines={f"steps from zero, {trunk} trunk": tables[trunk][STARTS[0]][steps] for trunk in TRUNKS},
        checks=judge({trunk: table[STARTS[1]][explained] for trunk, table in tables.items()}, saved),
        tables={
            "critics at their rates": {
                f"{trunk} trunk, {name}": row
                for trunk, table in tables.items()
                for name, row in table.items()
            },
            f"steps to the target on {config.tuning_seeds} tuning seeds, by learning rate": rates_table(
                tried, taken
            ),
        },
        figures=["score.png", "value.png"],
    )


def main(config: Config) -> None:
    """Train the stages before RLHF once, then RLHF with every critic."""
    use_cpu_devices()
    setup = Setup(config)
    folder = config.open_folder()
    base, _ = rlhf.pretrain(setup, folder)
    sft, _ = rlhf.fine_tune(setup, folder, base)
    data, _, samples = rlhf.annotate(setup, sft)
    model, _ = rlhf.learn_reward(setup, folder, sft, data, samples)
    models = Frozen(sft, model)
    report(config, folder, {trunk: compare(setup, folder, trunk, models) for trunk in TRUNKS})


if __name__ == "__main__":
    cli.main(Config, main)
