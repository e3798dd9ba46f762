"""Every direct and every group method against PPO: the same start, the same labels, equal compute.

RLHF as in `rlhf.py`, smaller (width 64, one layer): from one SFT policy a seed and 820 noisy comparisons of
its own answers. Direct methods learn from these rows, PPO and the group methods from the reward model fitted
to them, and are paid its score alone. Compute is counted in tokens read forward (1) and backward (2 more),
the reward model or the reference's log-probabilities included, and each method takes as many steps as come to
PPO's 616,000. Batches hold 32 answers (8 prompts by 4) or 32 pairs, 2 epochs of 2 minibatches online.
Coefficients are the presets' and were not tuned. For comparison, "imitation" goes on fine-tuning, on the
chosen answers, and the best of 16 SFT answers is taken by the reward model. 2 seeds choose each method's rate
out of three neighbours, by gold reward; 6 others are reported. Before lower rates took their place, GRPO, Dr.
GRPO, GSPO and rejection sampling had also been tried at 1e-2, IPO and SimPO at 3e-3: too high for all.

The group methods' presets hold the policy less than PPO's controller does, so that the same score may come
with more KL and less gold. Where the reward model scores a direct method's policy low too, that method found
less, and was not misled more. This is one small world, in which an answer costs as much to write as to read
and 820 pairs are read four times; it ranks no method elsewhere.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rlhf
import rlhf_setup
from dpo_vs_ppo_report import draw, report
from rlhf_setup import Setup
from stages import StagesConfig

from jaxrl_align import align
from jaxrl_align.actors.text import Frozen
from jaxrl_align.align import DirectHParams, GroupMethod, RewardModel, RLHFHParams
from jaxrl_align.checks import check_divides
from jaxrl_align.learner import LossFn
from jaxrl_align.losses import best_of_n_kl
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.runtime import Claim, cli
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import train_members, with_data
from jaxrl_align.runtime.mesh import use_cpu_devices
from jaxrl_align.types import Comparisons, Learner, Params, Ratings

CLAIM = Claim(
    "From equal labels and equal compute PPO on a learned reward earns more of the hidden reward than every "
    "method that learns from the comparisons directly; methods without a critic come near it.",
    rows=("F10",),
    minutes=12,
)
DIRECT: dict[str, tuple[Callable[[LanguageModel], LossFn], DirectHParams]] = {
    "DPO": (align.dpo_objective, DirectHParams()),
    "cDPO": (align.dpo_objective, DirectHParams(label_smoothing=0.2)),
    "IPO": (align.ipo_objective, DirectHParams()),
    "KTO": (align.kto_objective, DirectHParams()),
    "ORPO": (align.orpo_objective, DirectHParams()),
    "SimPO": (align.simpo_objective, DirectHParams(beta=2.0)),
    "SLiC": (align.slic_objective, DirectHParams()),
    "imitation": (align.orpo_objective, DirectHParams(beta=0.0)),
}
"""Name -> objective and hyperparameters; ORPO without its odds ratio imitates the chosen answers. The
annotators err in about a fifth of the labels, which is cDPO's smoothing."""
REFERENCED = ("DPO", "cDPO", "IPO", "KTO")
GROUPS: dict[str, GroupMethod] = {
    "GRPO": align.GRPO,
    "Dr. GRPO": align.DR_GRPO,
    "GSPO": align.GSPO,
    "RLOO": align.RLOO,
    "REINFORCE++": align.REINFORCE_PLUS_PLUS,
    "rejection sampling": align.REJECTION_SAMPLING,
}
METHODS = ("PPO", *GROUPS, *DIRECT)
FIRST = {"PPO": 2, "RLOO": 2, "REINFORCE++": 2, "IPO": 0, "SimPO": 0}
"""Method -> where on the ladder of rates it begins, if not at 1: so that the best tried has neighbours."""
MEASURES = ("gold", "score", "kl", "length")
CHUNKS = 2
"""Entries into Python for each training, so that its steps are timed without the compilation."""


@dataclass(frozen=True)
class Config(StagesConfig):
    """The stages that all methods share, and the budget that each of them has."""

    out: str = "runs/dpo_vs_ppo"
    comparisons: int = 1024
    reward_steps: int = 40
    reward_learning_rate: float = 1e-3
    rlhf_steps: int = 40
    """PPO's; the budget of the others is what these and the reward model cost."""
    pairs_per_step: int = 32
    """Rows of a direct method's step."""
    group_size: int = 4
    """Answers to a prompt; the group methods write as many answers a step as PPO does."""
    best_of: int = 16
    """Of the answers of the SFT policy, for comparison."""
    ladder: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    """Learning rates; each method tries three neighbours."""
    methods: tuple[str, ...] = METHODS
    """PPO, which the others are compared with, comes first."""

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes of training."""
        super().__post_init__()
        self.require(group_size=2, best_of=2, ladder=0)
        check_divides(self.group_size, self.prompts_per_step, "group_size", "prompts_per_step")
        groups = self.prompts_per_step // self.group_size
        check_divides(self.minibatches, groups, "minibatches", "prompts_per_step / group_size")
        if len(self.ladder) < 5:
            raise ValueError(f"ladder must hold at least 5 learning rates; got {self.ladder}")
        unknown = set(self.methods) - set(METHODS)
        if unknown or self.methods[:1] != ("PPO",):
            raise ValueError(
                f"methods must be PPO and then any of {', '.join(METHODS[1:])}; got {', '.join(self.methods)}"
            )

    def rates(self, method: str) -> tuple[float, ...]:
        """Return the learning rates that a method tries."""
        first = FIRST.get(method, 1)
        return self.ladder[first : first + 3]


class World(NamedTuple):
    """What all methods start from: M members."""

    setup: Setup
    sft: Params
    models: RewardModel
    """Fitted to the comparisons, normalised."""
    labels: Comparisons
    """[M, N, ...], without the rows that are held out from the reward model."""


class Passes(NamedTuple):
    """Compute in token passes: one token read forward is 1, its backward pass 2 more."""

    step: int
    once: int
    """Before the first step: the reward model, or the reference's log-probabilities."""


def count_passes(config: Config, method: str) -> Passes:
    """Return a method's cost; answers count in full length, for generation seldom ends before it."""
    read = lambda answers: config.prompt_length + answers * config.response_length
    if method in DIRECT:
        rows = config.comparisons - config.comparisons // 5
        if method == "KTO":  # two ratings a comparison, each read beside another's answer
            rows *= 2
        return Passes(3 * config.pairs_per_step * read(2), rows * read(2) * (method in REFERENCED))
    once = config.reward_steps * 3 * 32 * read(2) + config.comparisons * read(1)
    answers = config.prompts_per_step
    if method == "PPO":  # generate, reference, score, update
        return Passes(answers * read(1) * (3 + 3 * config.epochs), once)
    group = read(config.group_size)
    judged = GROUPS[method].kl != "none"
    shared = answers // config.group_size * group * (1 + judged + 3 * config.epochs)
    return Passes(shared + answers * read(1), once)


def count_steps(config: Config, method: str) -> int:
    """Return how many steps a method can afford, a multiple of `CHUNKS`."""
    ppo, own = count_passes(config, "PPO"), count_passes(config, method)
    steps = (ppo.once + config.rlhf_steps * ppo.step - own.once) // own.step
    return max(CHUNKS, steps - steps % CHUNKS)


def rows_of(world: World, method: str) -> Any:
    """Return what a direct method learns from, leaves [M, rows, ...]."""
    rows: Any = world.labels
    if method == "KTO":
        both = jax.tree.map(lambda *x: jnp.concatenate(x, 1), rows.chosen, rows.rejected)
        label = jnp.zeros(both.real.shape[:2]).at[:, : rows.chosen.real.shape[1]].set(1.0)
        rows = Ratings(jax.tree.map(lambda x: jnp.concatenate([x, x], 1), rows.prompt), both, label)
    if method not in REFERENCED:
        return rows
    return jax.jit(jax.vmap(functools.partial(align.with_reference, world.setup.lm)))(world.sft, rows)


def prepare(world: World, method: str) -> tuple[Learner, Any, Params, Any]:
    """Return a method's learner, its hyperparameters, and for all members its start and frozen tree.

    The reward is the reward model's alone: a penalty for missing stop tokens would say more than the labels.
    """
    setup, config, lm = world.setup, world.setup.config, world.setup.lm
    steps = count_steps(config, method)
    if method in DIRECT:
        objective, hparams = DIRECT[method]
        make = lambda rows: align.make_direct_learner(
            lm,
            sample_rows(rows, batch_size=config.pairs_per_step),
            objective=objective(lm),
            total_steps=steps,
        )
        return with_data(make), hparams, world.sft, rows_of(world, method)
    text = dataclasses.replace(setup.text, missing_stop="keep")
    how = {"epochs": config.epochs, "minibatches": config.minibatches, "total_steps": steps}
    frozen = Frozen(world.sft, world.models)
    if method == "PPO":
        prompts = sample_rows(setup.prompts, batch_size=config.prompts_per_step)
        learner = align.make_rlhf_learner(lm, setup.score, text, prompts, **how)
        hparams = RLHFHParams(kl_coef=config.kl_coef, kl_target=config.kl_target)
        return learner, hparams, jax.vmap(functools.partial(align.init_policy, lm))(world.sft), frozen
    prompts = sample_rows(setup.prompts, batch_size=config.prompts_per_step // config.group_size)
    how |= {"group_size": config.group_size, "method": GROUPS[method]}
    learner = align.make_group_learner(lm, setup.score, text, prompts, **how)
    return learner, GROUPS[method].hparams, {"lm": world.sft}, frozen


def train(
    world: World, folder: RunFolder, method: str, seeds: np.ndarray, rates: np.ndarray
) -> tuple[Params, float]:
    """Train all runs of a method, [K] seeds at [K] rates, in one program.

    Returns:
      The language models [K, ...], and the seconds that a step of one run took.
    """
    config = world.setup.config
    learner, hparams, start, frozen = prepare(world, method)
    steps, ends = count_steps(config, method), [(0, time.perf_counter())]
    take = lambda tree: jax.tree.map(lambda x: x[seeds], tree)
    how = {"keys": world.setup.keys(6)[seeds], "params": take(start), "frozen": take(frozen)}
    how |= {"chunk": steps // CHUNKS, "on_chunk": lambda step, *_: ends.append((step, time.perf_counter()))}
    how |= {"folder": folder, "label": method, "show": ("loss", "objective/kl", "rewards/margins")}
    hparams = hparams._replace(learning_rate=jnp.asarray(rates))
    params = train_members(learner, hparams, config, steps, **how).state.params
    after_compilation = np.diff(np.array(ends[1:]), axis=0).sum(0) if len(ends) > 2 else (1, np.nan)
    took = folder.once("seconds.json", lambda: after_compilation[1] / after_compilation[0] / len(seeds))
    return (params if method in DIRECT else params["lm"]), took


def measure(world: World, policy: Params, seeds: np.ndarray) -> dict[str, np.ndarray]:
    """Return the means over answers to held-out prompts, [K] each, of language models [K, ...]."""
    setup = world.setup
    take = lambda tree: jax.tree.map(lambda x: x[seeds], tree)
    prompts = take(setup.draw_prompts(rlhf_setup.SAMPLES, setup.test_prompts, 7))
    policy = jax.vmap(functools.partial(align.init_policy, setup.lm))(policy)
    samples = setup.write(policy, take(world.sft), prompts, setup.keys(8)[seeds])
    rows = (
        samples.gold,
        setup.score_answers(take(world.models), samples),
        samples.kl,
        samples.completions.real.sum(-1),
    )
    return {name: np.mean(row, 1) for name, row in zip(MEASURES, rows, strict=True)}


def compare(world: World, folder: RunFolder, method: str) -> dict[str, Any]:
    """Choose a method's rate on the tuning seeds, and train the others at it.

    Returns:
      The `rates` tried, their `tried` gold reward [R, tuning seeds], the `rate` chosen, `steps`, `seconds` of
      a step, and the measures [seeds] of the others.
    """
    config = world.setup.config
    rates, tuning = config.rates(method), config.tuning
    seeds = config.reported
    runs = np.tile(tuning, len(rates)), np.repeat(rates, len(tuning))
    policy, _ = train(world, folder.sub("tuning"), method, *runs)
    tried = measure(world, policy, runs[0])["gold"].reshape(len(rates), -1)
    rate = rates[int(tried.mean(-1).argmax())]
    policy, took = train(world, folder.sub("reported"), method, seeds, np.full(len(seeds), rate))
    about = {"rates": rates, "tried": tried, "rate": rate, "steps": count_steps(config, method)}
    return about | {"seconds": took} | measure(world, policy, seeds)


def best_of_n(world: World) -> dict[str, np.ndarray]:
    """Return the measures of the SFT answers that score best of n; the KL is the bound `best_of_n_kl`."""
    setup, n = world.setup, world.setup.config.best_of
    seeds = setup.config.reported
    take = lambda tree: jax.tree.map(lambda x: x[seeds], tree)
    prompts = take(setup.draw_prompts(rlhf_setup.SAMPLES // 4, setup.test_prompts, 7))
    prompts = jax.tree.map(lambda x: np.repeat(x, n, axis=1), prompts)
    policy = jax.vmap(functools.partial(align.init_policy, setup.lm))(take(world.sft))
    samples = setup.write(policy, take(world.sft), prompts, setup.keys(9)[seeds])
    scores = setup.score_answers(take(world.models), samples)
    rows = samples.gold, scores, np.full(scores.shape, best_of_n_kl(n)), samples.completions.real.sum(-1)
    chosen = scores.reshape(len(seeds), -1, n).argmax(-1)[..., None]
    pick = lambda x: np.take_along_axis(np.asarray(x).reshape(len(seeds), -1, n), chosen, -1).mean((1, 2))
    return {name: pick(row) for name, row in zip(MEASURES, rows, strict=True)}


def main(config: Config) -> None:
    """Train the stages that all methods share, then every method."""
    use_cpu_devices()
    setup = Setup(config)
    folder = config.open_folder()
    base, _ = rlhf.pretrain(setup, folder)
    sft, _ = rlhf.fine_tune(setup, folder, base)
    data, margin, samples = rlhf.annotate(setup, sft)
    models, held_out = rlhf.learn_reward(setup, folder, sft, data, samples)
    rows = config.comparisons // 5
    world = World(setup, sft, models, jax.tree.map(lambda x: x[:, rows:], data))
    seeds = config.reported
    agree = {
        "reward model, held-out rows": np.mean(np.array(list(held_out.values())[-1])[seeds] > 0, 1),
        "annotators, all rows": np.mean(margin[seeds] > 0, 1),
    }
    start = jax.tree.map(lambda x: x[seeds], sft)
    levels = {"SFT": measure(world, start, seeds), f"best of {config.best_of}": best_of_n(world)}
    tuning = config.tuning
    levels["SFT"]["tried"] = measure(world, jax.tree.map(lambda x: x[tuning], sft), tuning)["gold"]
    found = {method: compare(world, folder.sub(method), method) for method in config.methods}
    pick = lambda family: {name: row for name, row in found.items() if name == "PPO" or name in family}
    draw(folder, levels, {"PPO and group methods": pick(GROUPS), "PPO and direct methods": pick(DIRECT)})
    report(folder, config, CLAIM, levels, found, {"group": tuple(GROUPS), "direct": tuple(DIRECT)}, agree)


if __name__ == "__main__":
    cli.main(Config, main)
