"""Rewards without a gradient: a regular expression, an exact answer, and two answers that SFT cannot part.

*Pattern*: SFT policies as in `rlhf.py` (width 64, one layer) are paid 1 where a regular expression, read on
the host, is found: one quoted name, then a full stop. *Exact*: a tiny model has seen the right sum and 18
wrong ones equally often, and is paid 1 for the sum, by a function of tokens. *Rivals*: it has seen the sum
and the number after it equally often, worth 8.0 and 1.2. From the same start, with equally many answers and
steps, RL (RLOO, a KL penalty of 0.05) stands beside SFT on the policy's own newest answers: on the best of 8,
or on all. 2 seeds choose the rates, by the reward; 4 others are reported.

It takes the reward, and need not be a policy gradient: to imitate the best of 8 is a way too, and to draw
many answers and choose costs no training. What is asked for is all that one gets: the gold reward of
`rlhf.py` is no part of the pattern.

SFT on all its own answers ends in the shortest ones. Its loss is a mean over each answer's tokens, and the
expected gradient of that, E[grad log pi(y) / |y|], is REINFORCE with the reward 1 / |y|. SFT on the best has
that pull too, towards short hits. Summed over tokens it would be none; not run. Other patterns, penalties and
group sizes were not tried.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rlhf
import sums
from non_differentiable_report import BEST, draw, report
from rlhf_setup import Setup
from stages import StagesConfig

from jaxrl_align.actors.scores import Score
from jaxrl_align.actors.text import Frozen
from jaxrl_align.align import (
    REJECTION_SAMPLING,
    RLOO,
    GroupHParams,
    GroupMethod,
    by_answer,
    expected_best,
    host_reward,
    init_policy,
    make_group_learner,
)
from jaxrl_align.align.best_of_n import imitation
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner, sample_rows
from jaxrl_align.runtime import Claim, cli
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import train_members, with_data
from jaxrl_align.text.generation import TextConfig
from jaxrl_align.types import PaddedTokens, Params

CLAIM = Claim(
    "The objective need not be differentiable: reinforcement learning raises the matches of a regular "
    "expression and the probability of an exact answer, and parts two answers that fine-tuning is shown "
    "alike.",
    rows=("B29", "E6", "F2"),
    minutes=8,
)
WINDOW = 10
"""Last steps over which a run's reward and KL are averaged."""
METHODS = {
    "RL": RLOO,
    "SFT on the best": REJECTION_SAMPLING._replace(kl="loss"),
    "SFT on all": GroupMethod(
        by_answer(jnp.ones_like), imitation, kl="loss", hparams=GroupHParams(kl_coef=0.0)
    ),
}
"""What is done with the policy's own answers; "best" of each group, where one is better than another. The
last two only report the KL, at a weight of 0."""
PAID = {"exact": (1.0, 0.0), "rivals": (8.0, 1.2)}
"""Task of sums -> what the sum and the number after it are paid; F2's two texts are worth 8.0 and 1.2."""
POOL = 16, 64
"""Prompts and answers of each, from which the best of n is estimated."""


@dataclass(frozen=True)
class Config(StagesConfig):
    """The stages before, as in `rlhf.py`; what is rewarded; and the world of sums."""

    out: str = "runs/non_differentiable"
    seeds: int = 6
    pattern: str = r'^[^"]*"[^"]+"[^"]*\.$'
    """Rewarded where it is found in a finished answer: exactly one quoted name, a full stop at the end."""
    rlhf_steps: int = 60
    prompts_per_step: int = 8
    group_size: int = 8
    """Answers to each prompt."""
    learning_rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    """Tried for each method in either world."""
    sums_width: int = 32
    """Numbers in a token's hidden state, of the model that sums."""
    sums_sft_steps: int = 1000
    """Updates of the fine-tuning on sums."""
    sums_sft_learning_rate: float = 3e-3
    """Learning rate of the fine-tuning on sums."""
    sums_steps: int = 300
    """Updates by RL on sums."""
    sums_prompts_per_step: int = 16
    """Sums of an update by RL."""

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes of training."""
        super().__post_init__()
        self.require(group_size=2)
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"pattern must be a regular expression; got {self.pattern!r}: {error}"
            ) from error


class World(NamedTuple):
    """Where M members start from, what they are asked and what they are paid."""

    lm: LanguageModel
    score: Score
    text: TextConfig
    prompts: PaddedTokens
    """[N, P]."""
    prompts_per_step: int
    start: Params
    """Leaves [M, ...]."""
    paid: Any
    """What the score reads, leaves [M, ...]."""


class Trained(NamedTuple):
    """What a method came to, at R rates."""

    params: Params
    """Leaves [R, M, ...]."""
    reward: np.ndarray
    """[R, M, steps] mean over a step's answers."""
    kl: np.ndarray
    """[R, M, steps] nats an answer, to the start."""


def align(
    world: World, config: Config, folder: RunFolder, name: str, steps: int, on_chunk: Any = None
) -> Trained:
    """Train one method at every rate from every member's start, in one program."""
    rates, count = config.learning_rates, len(jax.tree.leaves(world.start)[0])
    prompts, method = sample_rows(world.prompts, batch_size=world.prompts_per_step), METHODS[name]
    how = {"group_size": config.group_size, "method": method, "total_steps": steps}
    learner = make_group_learner(world.lm, world.score, world.text, prompts, **how)
    tile = lambda tree: jax.tree.map(lambda x: jnp.tile(x, (len(rates), *[1] * (x.ndim - 1))), tree)
    hparams = method.hparams._replace(learning_rate=jnp.repeat(jnp.array(rates), count), stop_penalty=0.0)
    key = jax.random.fold_in(jax.random.key(config.seed), 51)
    start, paid = tile(world.start), tile(world.paid)
    options = {"keys": jnp.tile(jax.random.split(key, count), len(rates)), "params": {"lm": start}}
    options |= {"frozen": Frozen(start, paid), "folder": folder, "label": name, "on_chunk": on_chunk}
    options |= {"chunk": max(1, steps // 10), "show": ("reward", "objective/kl")}
    trained = train_members(learner, hparams, config, steps, **options)
    fold = lambda x: np.asarray(x).reshape(len(rates), count, *x.shape[1:])
    reward, kl = (fold(trained.history[metric].T) for metric in ("reward", "objective/kl"))
    return Trained(jax.tree.map(fold, trained.state.params["lm"]), reward, kl)


def choose(found: Trained, tuning: Sequence[int]) -> int:
    """Return the place of the rate with the highest reward at the end of the tuning members."""
    return int(found.reward[:, list(tuning), -WINDOW:].mean((1, 2)).argmax())


def finds(pattern: str, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return 1 for every completion in which the pattern is found, else 0."""
    return [float(re.search(pattern, text) is not None) for text in completions]


def hits(setup: Setup, samples: Any) -> np.ndarray:
    """Return which answers [M, N] are finished and hold the pattern."""
    found = [finds(setup.config.pattern, [], texts) for texts in samples.texts]
    stops = (samples.completions.tokens == setup.text.stop_token) & (samples.completions.real > 0)
    return np.array(found) * stops.any(-1)


def best_of(hit: np.ndarray, n: int) -> np.ndarray:
    """Return the share of prompts that the best of n answers hits, [M], from pools of hits [M, N, G]."""
    return np.asarray(jax.vmap(lambda pool: jnp.mean(jax.vmap(lambda x: expected_best(x, x, n))(pool)))(hit))


def match_pattern(config: Config, folder: RunFolder) -> dict[str, Any]:
    """Reward a regular expression, read on the host, in the text world of `rlhf.py`.

    Returns:
      `tried` {method: [R] hit rates of the tuning members}, `rates` {method}, `curves` {method: [M, steps]},
      `rows` {method or start: {hits, KL, gold, distinct: [M]}} on held-out prompts, `best` {n: [M]} and
      `texts`, some answers of the first member.
    """
    setup = Setup(config)
    params, _ = rlhf.pretrain(setup, folder)
    params, _ = rlhf.fine_tune(setup, folder, params)
    read = functools.partial(finds, config.pattern)
    reward = host_reward(read, setup.tokenizer, prompt_length=config.prompt_length, name="pattern")
    prompts = setup.prompts
    world = World(setup.lm, reward, setup.text, prompts, config.prompts_per_step, params, None)
    asked = setup.draw_prompts(rlhf.rlhf_setup.SAMPLES, setup.test_prompts, 7)
    policy = jax.jit(jax.vmap(functools.partial(init_policy, setup.lm)))
    members = slice(config.tuning_seeds, None)
    found: dict[str, Any] = {"tried": {}, "rates": {}, "curves": {}, "rows": {}, "texts": {}}

    def measure(name: str, lm_params: Params) -> None:
        samples = setup.write(policy(lm_params), params, asked, setup.keys(8))
        distinct = np.array([len(set(texts)) / len(texts) for texts in samples.texts])
        row = {"hits": hits(setup, samples).mean(1), "KL": samples.kl.mean(1), "gold": samples.gold.mean(1)}
        found["rows"][name] = {k: v[members] for k, v in (row | {"distinct": distinct}).items()}
        found["texts"][name] = samples.texts[config.tuning_seeds][:5]

    measure("start", params)
    for name in METHODS:
        trained = align(world, config, folder.sub(name), name, config.rlhf_steps)
        best = choose(trained, range(config.tuning_seeds))
        found["tried"][name] = trained.reward[:, : config.tuning_seeds, -WINDOW:].mean((1, 2))
        found["rates"][name] = config.learning_rates[best]
        found["curves"][name] = trained.reward[best, members]
        measure(name, jax.tree.map(lambda x, best=best: x[best], trained.params))
    drawn = setup.draw_prompts(POOL[0], setup.test_prompts, 9)
    each = jax.tree.map(lambda x: np.repeat(x, POOL[1], 1), drawn)
    pool = hits(setup, setup.write(policy(params), params, each, setup.keys(10)))
    found["best"] = {n: best_of(pool.reshape(-1, *POOL), n)[members] for n in (1, *BEST)}
    return found


def recorder(folder: RunFolder, lm: LanguageModel) -> Callable[..., None]:
    """Return `(step, params [K, ...])`, which writes what each member's answers to the sums are.

    In `likelihood_<step>.json`, [K, 5]: the mean probability of the sum and of the number after it, the share
    of prompts to which the sum is the likelier of the two, and the chance that it is among 8 and 64 answers.
    """

    @jax.jit
    @jax.vmap
    def read(params: Params) -> jax.Array:
        p = sums.likelihoods(lm, params)
        among = [jnp.mean(1.0 - (1.0 - p[:, 0]) ** n) for n in BEST]
        return jnp.stack([*p.mean(0), jnp.mean(p[:, 0] > p[:, 1]), *among])

    return lambda step, params: folder.write_json(f"likelihood_{step:05d}.json", read(params))


def add_numbers(config: Config, folder: RunFolder) -> dict[str, Any]:
    """Reward sums by pure functions of tokens: guessers' exact answers, and one of two rivals.

    Returns:
      By task `tried` and `rates` as above; `sft`, `paths` {method}: (steps [n], [n, M, 5] as `recorder`
      writes them); and `kl` {method: [M]}.
    """
    lm, seeds = sums.make_model(config.sums_width), config.seeds
    both = [sums.demonstrations(spread) for spread in sums.SPREADS.values()]
    rows = jax.tree.map(lambda *x: jnp.repeat(jnp.stack(x), seeds, axis=0), *both)
    steps = config.sums_sft_steps
    learner = with_data(
        lambda data: make_lm_learner(
            lm, sums.sample_pairs(data, batch_size=64), total_steps=steps, warmup_steps=20
        )
    )
    own = folder.sub("sums sft")
    write = recorder(own, lm)
    how = {"keys": jnp.tile(config.keys(31), 2), "frozen": rows, "folder": own}
    how |= {"label": "sums, SFT", "chunk": max(1, steps // 10)}
    how |= {"on_chunk": lambda step, state, _: write(step, state.params)}
    start = train_members(
        learner, LMHParams(config.sums_sft_learning_rate), config, steps, **how
    ).state.params
    paid = jnp.repeat(jnp.array(list(PAID.values())), seeds, axis=0)
    world = World(lm, sums.score, sums.TEXT, sums.prompts(), config.sums_prompts_per_step, start, paid)
    split = lambda path: (list(path), np.array(list(path.values())))
    sft_steps, sft = split(rlhf.read_steps(own, "likelihood"))
    tasks: dict[str, Any] = {task: {"tried": {}, "rates": {}, "paths": {}, "kl": {}} for task in PAID}
    for name in METHODS:
        own = folder.sub(f"sums {name}")
        note = recorder(own, lm)
        on_chunk = lambda step, state, _, note=note: note(step, state.params["lm"])
        trained = align(world, config, own, name, config.sums_steps, on_chunk)
        at, path = split(rlhf.read_steps(own, "likelihood"))
        path = path.reshape(len(at), len(config.learning_rates), -1, 3 + len(BEST))
        for i, task in enumerate(PAID):
            first = i * seeds
            tuning = range(first, first + config.tuning_seeds)
            members = slice(first + config.tuning_seeds, first + seeds)
            best = choose(trained, tuning)
            tasks[task]["tried"][name] = trained.reward[:, list(tuning), -WINDOW:].mean((1, 2))
            tasks[task]["rates"][name] = config.learning_rates[best]
            tasks[task]["kl"][name] = trained.kl[best, members, -WINDOW:].mean(-1)
            tasks[task]["sft"] = sft_steps, sft[:, members]
            tasks[task]["paths"][name] = at, path[:, best, members]
    return tasks


def main(config: Config) -> None:
    """Run both worlds, and report."""
    # On one device: a program that spans several waits for ever for a reward on the host.
    folder = config.open_folder()
    found = {"pattern": match_pattern(config, folder), **add_numbers(config, folder)}
    draw(folder, config, found)
    report(folder, config, CLAIM, found)


if __name__ == "__main__":
    cli.main(Config, main)
