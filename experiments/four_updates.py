"""Lecture 002's four updates of a language model side by side: what each stabiliser buys.

Each update adds one to those before: a baseline (B25), an entropy term (B26), a term for log P_pre (B27). The
stages before are those of `rlhf.py`, smaller (width 64, 512 tokens); P_pre is the SFT policy, from which all
start; coefficients are the presets', 0.05. The reward model's scores are normalised to mean 0 on SFT answers,
which does part of a baseline's work, so the vanilla update also runs on scores raised by 2. Each arm takes 60
steps of 8 prompts with 4 answers each, at every rate; 2 seeds choose a rate of its own for each, by gold
reward, and 4 others are reported, at their own rates and at each common one.

A baseline of 3 other answers is noise itself: where the scores are centred already, it may add as much
variance as it takes away. What it protects from is a score with an offset, which no normalisation has taken
away or which has come since. Entropy is a means: whether it buys reward depends on what there is to explore.
Other coefficients and Tsallis's entropy were not tried.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rlhf
import rlhf_setup
from four_updates_report import POLICIES, draw, report
from rlhf_setup import Setup
from stages import StagesConfig

from jaxrl_align.actors.text import Frozen
from jaxrl_align.align import (
    DRIFT,
    EXPLORATION,
    VANILLA,
    VARIANCE,
    UpdateHParams,
    init_policy,
    make_update_learner,
    model_reward,
)
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.runtime import Claim, cli
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import train_members
from jaxrl_align.runtime.mesh import shard_members, use_cpu_devices
from jaxrl_align.types import Learner, Params

CLAIM = Claim(
    "A baseline lowers the variance of a language model's policy gradient, an entropy term keeps the policy "
    "exploring, and a term for the pre-trained model's likelihood keeps it near where it came from.",
    rows=("B24", "B25", "B26", "B27", "B28", "H9"),
    minutes=10,
)
WINDOW = 10
"""Last steps over which a run's score, entropy and KL are averaged."""
EVERY = 20
"""Steps between two measurements of the gold reward."""
MEASURES = {"score": "reward", "entropy": "entropy", "KL": "objective/kl"}
"""What is compared -> the learner's metric."""


class Arm(NamedTuple):
    """One update, and a number that is added to whatever an answer is paid."""

    update: UpdateHParams
    offset: float = 0.0


ARMS = {
    "vanilla": Arm(VANILLA),
    "vanilla, score + 2": Arm(VANILLA, 2.0),
    "variance": Arm(VARIANCE),
    "exploration": Arm(EXPLORATION),
    "drift": Arm(DRIFT),
}


@dataclass(frozen=True)
class Config(StagesConfig):
    """The stages before, as in `rlhf.py`, and the updates that are compared."""

    out: str = "runs/four_updates"
    seeds: int = 6
    layers: int = 2
    rlhf_steps: int = 60
    prompts_per_step: int = 8
    group_size: int = 4
    """Answers to each prompt."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Tried for each update."""
    batches: int = 16
    """Gradients, each of one step's answers, whose variance is measured."""

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes of training."""
        super().__post_init__()
        self.require(group_size=2, batches=2)


class Race(NamedTuple):
    """What every arm came to, leaves [A, R, M, ...]: A arms, R rates, M seeds."""

    params: Params
    """{"lm": leaves [A, R, M, ...]}, at the end."""
    curves: dict[str, np.ndarray]
    """By measure [A, R, M, steps]; the score is the reward model's, without an arm's offset."""
    gold: np.ndarray
    """[A, R, M, times] on held-out prompts, at `gold_steps`."""


def gold_steps(config: Config) -> list[int]:
    """Return the steps at which the gold reward is measured, 0 and the last among them."""
    return sorted({*range(0, config.rlhf_steps, EVERY), config.rlhf_steps})


def make_learner(setup: Setup, total_steps: int | None, **options: Any) -> Learner:
    """Build the one learner of all updates; it reads SFT prompts."""
    config = setup.config
    prompts = sample_rows(setup.prompts, batch_size=config.prompts_per_step)
    options |= {"group_size": config.group_size, "total_steps": total_steps}
    return make_update_learner(setup.lm, model_reward(setup.lm), setup.text, prompts, **options)


def settings(arms: Sequence[Arm], rates: Sequence[float]) -> UpdateHParams:
    """Return the updates as one record whose fields are [K]; an offset is paid for a missing stop, too."""
    each = (
        arm.update._replace(learning_rate=rate, stop_penalty=1.0 - arm.offset)
        for arm, rate in zip(arms, rates, strict=True)
    )
    return UpdateHParams(*np.array(list(each), np.float32).T)


def take(models: Frozen, arms: Sequence[Arm], seeds: np.ndarray) -> Frozen:
    """Return the frozen models of members [K]: their seed's, whose reward is raised by their arm's offset."""
    models = jax.tree.map(lambda x: x[seeds], models)
    offset = jnp.array([arm.offset for arm in arms])
    reward = models.reward_model
    return models._replace(reward_model=reward._replace(bias=reward.bias + offset))


def ask_all(setup: Setup, params: Params, reference: Params) -> np.ndarray:
    """Let policies answer held-out prompts, all seeds of one setting at a time.

    Args:
      setup: of the stages before.
      params: leaves [K M, ...], of M seeds each.
      reference: leaves [M, ...].

    Returns:
      [2, K M] the mean gold reward, and the mean KL to the reference in nats an answer.
    """
    seeds = setup.config.seeds
    asked = setup.draw_prompts(rlhf_setup.SAMPLES, setup.test_prompts, 7)
    whole, rows = jax.jit(jax.vmap(functools.partial(init_policy, setup.lm))), []
    params = jax.tree.map(np.asarray, params)
    for first in range(0, len(jax.tree.leaves(params)[0]), seeds):
        policies = whole(jax.tree.map(lambda x, i=first: x[i : i + seeds], params))
        samples = setup.write(policies, reference, asked, setup.keys(5))
        rows.append((samples.gold.mean(1), samples.kl.mean(1)))
    return np.concatenate(rows, axis=1)


def race(setup: Setup, folder: RunFolder, models: Frozen) -> Race:
    """Train every arm at every rate from every seed's SFT policy, in one program.

    The SFT policy is also the model that the drift is measured from.
    """
    config, rates = setup.config, setup.config.learning_rates
    shape = len(ARMS), len(rates), config.seeds
    runs = list(itertools.product(ARMS.values(), rates, range(config.seeds)))
    arms, seeds = [arm for arm, _, _ in runs], np.array([seed for _, _, seed in runs])
    frozen = take(models, arms, seeds)

    def evaluate(step: int, params: Params) -> None:
        if step in gold_steps(config):
            folder.write_json(f"gold_{step:05d}.json", ask_all(setup, params["lm"], models.reference)[0])

    start = {"lm": frozen.reference}
    evaluate(0, start)
    how = {"keys": setup.keys(6)[seeds], "params": start, "frozen": frozen, "folder": folder, "chunk": 10}
    how |= {"label": "four updates", "show": ("reward", "objective/kl")}
    how |= {"on_chunk": lambda step, state, _: evaluate(step, state.params)}
    hparams, steps = settings(arms, [rate for _, rate, _ in runs]), config.rlhf_steps
    trained = train_members(make_learner(setup, steps), hparams, config, steps, **how)
    fold = lambda x: np.asarray(x).reshape(*shape, *x.shape[1:])
    curves = {name: fold(np.asarray(trained.history[metric]).T) for name, metric in MEASURES.items()}
    curves["score"] = curves["score"] - np.array([arm.offset for arm in ARMS.values()]).reshape(-1, 1, 1, 1)
    gold = np.array(list(rlhf.read_steps(folder, "gold").values())).T
    return Race(jax.tree.map(fold, trained.state.params), curves, fold(gold))


def gradient_variance(
    setup: Setup, params: Params, models: Frozen, seeds: np.ndarray, arms: Sequence[Arm]
) -> np.ndarray:
    """Return the variance of each arm's gradient, over batches of answers by the same policies.

    The variance is the trace of the covariance matrix. All arms see the same answers.

    Args:
      setup: of the stages before.
      params: {"lm": leaves [K, ...]} of the policies.
      models: of every seed.
      seeds: [K] of the policies.
      arms: A of them.

    Returns:
      [A, K].
    """
    learner, count = make_learner(setup, None, optimizer=optax.identity()), setup.config.batches
    each = [arm for arm in arms for _ in seeds]
    hparams, frozen = settings(each, [1.0] * len(each)), take(models, each, np.tile(seeds, len(arms)))

    def one(params: Params, frozen: Frozen, key: jax.Array, hparams: UpdateHParams) -> jax.Array:
        def add(sums: Any, key: jax.Array) -> tuple[Any, None]:
            after, _ = learner.step(learner.init(key, hparams, params), None, frozen)
            gradient = jax.tree.map(jnp.subtract, params, after.params)
            return jax.tree.map(jnp.add, sums, (gradient, optax.tree.norm(gradient, squared=True))), None

        zero = jax.tree.map(jnp.zeros_like, params), jnp.zeros(())
        (total, squares), _ = jax.lax.scan(add, zero, jax.random.split(key, count))
        return (squares - optax.tree.norm(total, squared=True) / count) / (count - 1)

    tile = lambda x: np.tile(x, (len(arms), *[1] * (x.ndim - 1)))
    keys = jnp.tile(setup.keys(21)[seeds], len(arms))
    members = shard_members((jax.tree.map(tile, params), frozen, keys, hparams))
    return np.asarray(jax.jit(jax.vmap(one))(*members)).reshape(len(arms), len(seeds))


def compare_gradients(setup: Setup, found: Race, models: Frozen) -> dict[str, dict[str, np.ndarray]]:
    """Return the variance of the first three arms' gradients, {policy: {arm: [M]}}, for the reported seeds.

    The policies are the first, and the variance arm's last one at the middle rate.
    """
    config = setup.config
    seeds = config.reported
    place = list(ARMS).index("variance"), len(config.learning_rates) // 2
    last = jax.tree.map(lambda x: x[(*place, seeds)], found.params)
    first = {"lm": jax.tree.map(lambda x: np.asarray(x)[seeds], models.reference)}
    policies = jax.tree.map(lambda *x: np.concatenate(x), first, last)
    names = list(ARMS)[:3]
    rows = gradient_variance(setup, policies, models, np.tile(seeds, 2), [ARMS[name] for name in names])
    halves = np.split(rows, 2, axis=1)
    return {
        policy: dict(zip(names, half, strict=True)) for policy, half in zip(POLICIES, halves, strict=True)
    }


def measure_ends(setup: Setup, found: Race, base: Params) -> dict[str, np.ndarray]:
    """Return what every run came to, by measure [A, R, M], its KL to the pre-trained model among them."""
    unfold = lambda x: x.reshape(-1, *x.shape[3:])
    far = ask_all(setup, jax.tree.map(unfold, found.params["lm"]), base)[1].reshape(found.gold.shape[:3])
    ends = {name: curve[..., -WINDOW:].mean(-1) for name, curve in found.curves.items()}
    return ends | {"gold": found.gold[..., -1], "KL to pre-trained": far}


def main(config: Config) -> None:
    """Train the stages before once, then all updates."""
    use_cpu_devices()
    setup = Setup(config)
    folder = config.open_folder()
    base, _ = rlhf.pretrain(setup, folder)
    sft, _ = rlhf.fine_tune(setup, folder, base)
    data, _, samples = rlhf.annotate(setup, sft)
    model, _ = rlhf.learn_reward(setup, folder, sft, data, samples)
    models = Frozen(sft, model)
    found = race(setup, folder.sub("updates"), models)
    ends, gradients = measure_ends(setup, found, base), compare_gradients(setup, found, models)
    curves = found.curves | {"gold": found.gold}
    folder.write_json("values.json", {"ends": ends, "curves": curves, "gradients": gradients})
    draw(config, folder, list(ARMS), curves, gold_steps(config))
    first = {name: curves[name][0, 0, config.reported, 0] for name in ("gold", "entropy")}
    report(folder, config, CLAIM, list(ARMS), first, ends, gradients)


if __name__ == "__main__":
    cli.main(Config, main)
