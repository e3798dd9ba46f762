"""Lecture 002's four updates of a language model side by side: what each stabiliser buys."""

import functools
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rlhf
from panels import save_panels
from rlhf_setup import Setup

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
from jaxrl_align.runtime import cli, metrics
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import train_members
from jaxrl_align.runtime.mesh import use_cpu_devices
from jaxrl_align.types import Learner, Params, PaddedTokens

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
class Config(rlhf.Config):
    """The stages before, as in `rlhf.py`, and the updates that are compared."""

    out: str = "runs/four_updates"
    seeds: int = 8
    """Of the stages before, which all updates share; the first are for the choice of rates."""
    tuning_seeds: int = 2
    vocab_size: int = 512
    width: int = 64
    pretrain_steps: int = 300
    rlhf_steps: int = 100
    prompts_per_step: int = 8
    group_size: int = 8
    """Answers to each prompt."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Tried for each update."""
    batches: int = 16
    """Gradients, each of one step's answers, whose variance is measured."""

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes of training."""
        super().__post_init__()
        self.require(tuning_seeds=1, seeds=self.tuning_seeds + 2, group_size=2, batches=2)


class Run(NamedTuple):
    """One member of the comparison."""

    arm: str
    rate: float
    seed: int


class Race(NamedTuple):
    """What the members [K] of a training came to."""

    params: Params
    """{"lm": leaves [K, ...]}."""
    history: dict[str, np.ndarray]
    """Of each of `MEASURES` [K, steps]; the score is that of the reward model, without an arm's offset."""
    gold: np.ndarray
    """[K, times] at `gold_steps`."""


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
    """Return the frozen models of members [K]: their seed's, the reward model raised by their arm's offset."""
    models = jax.tree.map(lambda x: x[seeds], models)
    offset = jnp.array([arm.offset for arm in arms])
    reward = models.reward_model
    return models._replace(reward_model=reward._replace(bias=reward.bias + offset))


def race(
    setup: Setup, folder: RunFolder, models: Frozen, runs: Sequence[Run], test: PaddedTokens | None = None
) -> Race:
    """Train all runs in one program, from the SFT policy, which is the drift's model too.

    Args:
      setup: of the stages before.
      folder: of this training.
      models: of every seed.
      runs: K members.
      test: [M, N, P] held-out prompts of every seed, on whose answers the gold reward is measured; None
        measures none.
    """
    config, arms = setup.config, [ARMS[run.arm] for run in runs]
    seeds = np.array([run.seed for run in runs])
    frozen = take(models, arms, seeds)
    keys, asked = setup.keys(5)[seeds], jax.tree.map(lambda x: x[seeds], test)
    whole = jax.jit(jax.vmap(functools.partial(init_policy, setup.lm)))

    def evaluate(step: int, params: Params) -> None:
        if test is not None and step in gold_steps(config):
            gold = setup.write(whole(params["lm"]), frozen.reference, asked, keys).gold
            folder.write_json(f"gold_{step:05d}.json", gold.mean(1))

    start = {"lm": frozen.reference}
    evaluate(0, start)
    how = {"keys": setup.keys(6)[seeds], "params": start, "frozen": frozen, "folder": folder, "chunk": 10}
    how |= {"label": folder.path.name, "show": ("reward", "objective/kl")}
    how |= {"on_chunk": lambda step, state, _: evaluate(step, state.params)}
    hparams = settings(arms, [run.rate for run in runs])
    steps = config.rlhf_steps
    trained = train_members(make_learner(setup, steps), hparams, config, steps, **how)
    history = {name: np.asarray(trained.history[metric]).T for name, metric in MEASURES.items()}
    history["score"] = history["score"] - np.array([[arm.offset] for arm in arms])
    gold = rlhf.read_steps(folder, "gold")
    return Race(trained.state.params, history, np.array([gold[step] for step in sorted(gold)]).T)


def gradient_variance(
    setup: Setup, params: Params, models: Frozen, seeds: np.ndarray, arms: Sequence[Arm]
) -> np.ndarray:
    """Return the variance of each arm's gradient, over batches of answers by the same policies.

    The variance is the trace of the covariance matrix. All arms see the same answers.

    Args:
      setup: of the stages before.
      params: {"lm": leaves [M, ...]} of the policies.
      models: of every seed.
      seeds: [M] of the policies.
      arms: A of them.

    Returns:
      [A, M].
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

    tile = lambda x: jnp.tile(x, (len(arms), *[1] * (x.ndim - 1)))
    keys = jnp.tile(setup.keys(21)[seeds], len(arms))
    found = jax.jit(jax.vmap(one))(jax.tree.map(tile, params), frozen, keys, hparams)
    return np.asarray(found).reshape(len(arms), len(seeds))


def last(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last `WINDOW` of steps [..., steps]."""
    return values[..., -WINDOW:].mean(-1)


def tune(setup: Setup, folder: RunFolder, models: Frozen) -> tuple[dict[str, float], dict[str, Any]]:
    """Train every arm at every rate on the tuning seeds.

    Returns:
      The rate of each arm, that of the highest score at the end; and by measure what all came to, by arm a
      list over the rates of means over seeds.
    """
    config, rates = setup.config, setup.config.learning_rates
    runs = [Run(*run) for run in itertools.product(ARMS, rates, range(config.tuning_seeds))]
    found = race(setup, folder.sub("tuning"), models, runs)
    shape = len(ARMS), len(rates), config.tuning_seeds
    ends = {name: last(values).reshape(shape).mean(-1) for name, values in found.history.items()}
    best = ends["score"].argmax(-1)
    return {arm: rates[i] for arm, i in zip(ARMS, best, strict=True)}, {
        name: dict(zip(ARMS, values.tolist(), strict=True)) for name, values in ends.items()
    }


def compare(setup: Setup, folder: RunFolder, base: Params, models: Frozen) -> dict[str, Any]:
    """Choose the rates, train all arms on the other seeds, and measure what each stabiliser is for.

    Returns:
      `rates` and `tried` as `tune` returns them; by measure `curves` {arm: [M, steps]}, `gold` among them
      [M, times]; `ends` {arm: [M]}, where "KL to the pre-trained" is measured at the end; and `gradients`
      {policy: {arm: [M]}}, each arm's variance at the first policy and at the last of the variance arm.
    """
    config = setup.config
    rates, tried = tune(setup, folder, models)
    seeds = np.arange(config.tuning_seeds, config.seeds)
    runs = [Run(arm, rates[arm], seed) for arm in ARMS for seed in seeds]
    test = setup.draw_prompts(rlhf.rlhf_setup.SAMPLES, setup.test_prompts, 7)
    found = race(setup, folder.sub("reported"), models, runs, test)
    by_arm = lambda x: dict(
        zip(ARMS, np.asarray(x).reshape(len(ARMS), len(seeds), *x.shape[1:]), strict=True)
    )
    curves = {name: by_arm(x) for name, x in (found.history | {"gold": found.gold}).items()}
    tiled = np.tile(seeds, len(ARMS))
    policy = jax.jit(jax.vmap(functools.partial(init_policy, setup.lm)))(found.params["lm"])
    asked, bases = jax.tree.map(lambda x: x[tiled], (test, base))
    far = setup.write(policy, bases, asked, setup.keys(5)[tiled]).kl.mean(1)
    ends = {name: {arm: last(x) for arm, x in by.items()} for name, by in curves.items() if name != "gold"}
    ends |= {"gold": {arm: x[:, -1] for arm, x in curves["gold"].items()}}
    ends |= {"KL to the pre-trained": by_arm(far)}
    start = {"lm": jax.tree.map(lambda x: x[seeds], models.reference)}
    place = list(ARMS).index("variance") * len(seeds)
    end = jax.tree.map(lambda x: x[place : place + len(seeds)], found.params)
    names = list(ARMS)[:3]
    spread = lambda params: gradient_variance(setup, params, models, seeds, [ARMS[name] for name in names])
    gradients = {
        name: dict(zip(names, spread(params), strict=True))
        for name, params in (("first policy", start), ("last policy", end))
    }
    return {"rates": rates, "tried": tried, "curves": curves, "ends": ends, "gradients": gradients}


def report(config: Config, folder: RunFolder, found: dict[str, Any]) -> None:
    """Print the rates tried, what every update came to and what the gradients vary; draw the curves."""
    print(f"means over the last {WINDOW} steps on {config.tuning_seeds} tuning seeds, by learning rate:")
    print(" " * 22 + "".join(f"{rate:>24g}" for rate in config.learning_rates))
    tried = found["tried"]
    for arm in ARMS:
        ends = zip(*(tried[name][arm] for name in MEASURES), strict=True)
        print(f"  {arm:20}" + "".join(f"{s:9.2f} {e:6.2f} {k:7.1f}" for s, e, k in ends))
    print("  (score, entropy [nats a token], KL to SFT [nats an answer])")
    seeds = config.seeds - config.tuning_seeds
    print(f"at the rate of the highest score, {seeds} other seeds, 95% t intervals, paired below:")
    print(" " * 22 + f"{'rate':>8}" + "".join(f"{name:>22}" for name in found["ends"]))
    for arm in ARMS:
        cells = (metrics.mean_text(by[arm], ".2f") for by in found["ends"].values())
        print(f"  {arm:20}{found['rates'][arm]:8g}" + "".join(f"{cell:>22}" for cell in cells))
    for a, b in itertools.pairwise(ARMS):
        cells = (metrics.mean_text(by[b] - by[a], "+.2f") for by in found["ends"].values())
        print(f"  {b + ' less ' + a:28}" + "".join(f"{cell:>22}" for cell in cells))
    for policy, by in found["gradients"].items():
        for arm in list(by)[1:]:
            mean, half = metrics.mean_interval(np.log(by[arm] / by["vanilla"]))
            low, high = np.exp([mean - half, mean + half])
            print(f"variance of the gradient, {policy}, {arm} over vanilla: ", end="")
            print(f"{np.exp(mean):.2f} [{low:.2f}, {high:.2f}]")
    labels = {"score": "reward model's score [deviations]", "gold": "gold reward, held-out prompts"}
    labels |= {"entropy": "entropy [nats a token]", "KL": "KL to SFT [nats an answer]"}
    steps = {name: np.arange(config.rlhf_steps) for name in MEASURES} | {"gold": np.array(gold_steps(config))}
    panels = {
        label: {arm: (steps[name], ys.T) for arm, ys in found["curves"][name].items()}
        for name, label in labels.items()
    }
    title = f"Four updates, {seeds} seeds, 95% t intervals"
    save_panels(folder.path / "four_updates.png", "steps", panels, title=title)
    folder.write_json("results.json", found)


def main(config: Config) -> None:
    """Train the stages before once, then all updates."""
    started = time.monotonic()
    use_cpu_devices()
    setup = Setup(config)
    folder = config.open_folder()
    base, _ = rlhf.pretrain(setup, folder)
    sft, _ = rlhf.fine_tune(setup, folder, base)
    data, _, samples = rlhf.annotate(setup, sft)
    model, _ = rlhf.learn_reward(setup, folder, sft, data, samples)
    report(config, folder, compare(setup, folder, base, Frozen(sft, model)))
    print(f"figure and results.json are in {folder.path}; {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    cli.main(Config, main)
