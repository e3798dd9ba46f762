"""Rounds of collecting comparisons, fitting the reward model and training the policy, against one round.

ChatGPT was made in several rounds (lectures 001 and 003, F16). Models, prompts and the hidden gold reward are
those of `rlhf.py`, smaller (width 64, one layer, noisier annotators). Every arm spends 512 comparisons, 100
steps of the reward model and 60 steps of PPO: at once, or a quarter in each of 4 rounds, which learn from the
comparisons of all rounds so far, from the newest alone, or, to part the policy's own answers from all else
that rounds change, from answers that the fine-tuned policy gives in every round. A step of
`align.make_rounds_learner` is a round. Accuracy is on pairs of the policy's own answers to held-out prompts:
"first", of the first reward model on the first policy's, "last", of the last one on the last policy's;
"refitted" is what fitting the model anew adds on a policy's own answers, in the mean over the rounds.

Rounds can mend an accuracy that falls because the policy has left what the model was fitted to. They cannot
mend one that falls because its answers have become harder to tell apart, nor what so few new comparisons a
round leave unlearnt. 2 other seeds choose the rates, by gold reward. Tried first: 100 steps of the reward
model in every round, which fit the noise.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rlhf
import rlhf_setup
from rates import rates_table
from rlhf_setup import Setup
from rounds_report import Path, draw, report
from stages import StagesConfig

from jaxrl_align.actors.scores import Score
from jaxrl_align.actors.text import Frozen
from jaxrl_align.align import (
    RewardHParams,
    RewardModel,
    RLHFHParams,
    RoundsHParams,
    host_reward,
    init_policy,
    make_rounds_learner,
)
from jaxrl_align.align import reward_model as rm
from jaxrl_align.checks import check_divides
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.runtime import Claim, cli
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.mesh import use_cpu_devices
from jaxrl_align.types import Params

CLAIM = Claim(
    "A reward model that was fitted once is wrong where the policy goes, so that rounds of comparing the "
    "policy's newest answers, fitting and training earn more than one round of the same cost.",
    rows=("F16",),
    minutes=12,
)


@dataclass(frozen=True)
class Config(StagesConfig):
    """The stages before, the rounds, and what is swept."""

    out: str = "runs/rounds"
    rounds: int = 4
    """Of collecting comparisons, fitting the reward model and training the policy."""
    comparisons: int = 512
    """Of all rounds together."""
    annotator_temperature: float = 1.0
    reward_steps: int = 100
    """Of all rounds together."""
    reward_learning_rate: float = 1e-3
    rlhf_steps: int = 60
    """Of all rounds together."""
    prompts_per_step: int = 16
    policy_rates: tuple[float, ...] = (3e-4, 1e-3)
    """Tried for each arm that has a rate of its own."""
    kl_coefs: tuple[float, ...] = (0.0, 0.1)
    """Of PPO, for a score of deviation 1; they stay as they are."""

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes of training."""
        super().__post_init__()
        self.require(rounds=2, kl_coefs=0, policy_rates=0)
        check_divides(self.rounds, self.rlhf_steps, "rounds", "rlhf_steps")
        check_divides(self.rounds, self.reward_steps, "rounds", "reward_steps")
        check_divides(
            self.rounds * self.prompts_per_step, self.comparisons, "rounds times prompts", "comparisons"
        )


class Arm(NamedTuple):
    """A way of spending the comparisons and the steps of PPO."""

    parts: int
    """Into which they are divided."""
    keep: bool = True
    """The comparisons of earlier rounds are learnt from too."""
    writer: Literal["policy", "reference"] = "policy"
    """Whose answers are compared."""
    tuned_as: str | None = None
    """The arm whose learning rate it takes; None, its own."""


def list_arms(config: Config) -> dict[str, Arm]:
    """Return the arms by name."""
    rounds = f"{config.rounds} rounds"
    return {
        "1 round": Arm(1),
        rounds: Arm(config.rounds),
        f"{rounds}, newest comparisons": Arm(config.rounds, keep=False, tuned_as=rounds),
        f"{rounds}, first policy's answers": Arm(config.rounds, writer="reference", tuned_as=rounds),
    }


class Run(NamedTuple):
    """One member of an arm."""

    kl_coef: float
    rate: float
    seed: int


def gold_score(setup: Setup) -> Score:
    """Return the hidden reward as a score: Python reads the texts, of which it is not told who has ended."""

    def of(stopped: bool) -> Score:
        def gold(prompts: list[str], completions: list[str]) -> list[float]:
            return [setup.gold(text, stopped) for text in completions]

        return host_reward(gold, setup.tokenizer, prompt_length=setup.text.prompt_length)

    ended, cut = of(True), of(False)

    def score(model: Any, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        start = setup.text.prompt_length
        stopped = jnp.any((tokens[start:] == setup.text.stop_token) & (mask[start:] > 0))
        return jnp.where(stopped, ended(model, tokens, mask), cut(model, tokens, mask))

    return score


class States(NamedTuple):
    """What an arm's members were before the first round and after each, leaves [M, rounds + 1, ...]."""

    policy: Params
    model: RewardModel
    """The first one is none yet."""


def take_rounds(setup: Setup, sft: Params, arm: Arm, runs: Sequence[Run]) -> States:
    """Go through all rounds of an arm, every member in one program.

    On one device: a program of several, which wait for each other, can hang at a reward on the host.
    """
    config = setup.config
    learner = make_rounds_learner(
        setup.lm,
        gold_score(setup),
        replace(setup.text, missing_stop="keep"),
        sample_rows(setup.prompts, batch_size=config.prompts_per_step),
        rounds=arm.parts if arm.keep else 1,
        comparisons=config.comparisons // arm.parts,
        reward_steps=config.reward_steps // arm.parts,
        policy_steps=config.rlhf_steps // arm.parts,
        writer=arm.writer,
        epochs=config.epochs,
        minibatches=config.minibatches,
    )

    def member(key: jax.Array, head_key: jax.Array, params: Params, rate: Any, coef: Any) -> States:
        start = {
            "policy": init_policy(setup.lm, params),
            "reward": rm.init_reward_params(head_key, setup.lm, params),
        }
        policy = RLHFHParams(rate, kl_coef=coef, kl_horizon=jnp.inf)
        reward = RewardHParams(config.reward_learning_rate)
        hparams = RoundsHParams(config.annotator_temperature, reward, policy)

        def go(state: Any, _: None) -> tuple[Any, States]:
            state = learner.step(state, None, Frozen(params, None))[0]
            return state, read(state)

        def read(state: Any) -> States:
            scale = state.env_state.gain, state.env_state.bias
            return States(state.params["policy"], RewardModel(state.params["reward"], *scale))

        first = learner.init(key, hparams, start)
        rest = jax.lax.scan(go, first, None, arm.parts)[1]
        return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), read(first), rest)

    seeds = np.array([run.seed for run in runs])
    keys, head_keys = setup.two_keys(6)
    given = keys[seeds], head_keys[seeds], jax.tree.map(lambda x: np.asarray(x)[seeds], sft)
    traced = tuple(jnp.array([getattr(run, name) for run in runs]) for name in ("rate", "kl_coef"))
    return jax.jit(jax.vmap(member))(*given, *traced)


def measure(setup: Setup, sft: Params, states: States, seeds: np.ndarray) -> dict[str, np.ndarray]:
    """Return `gold` and `kl` of the policies, and what reward models order rightly of their answers.

    Every policy answers each held-out prompt twice. `fresh` is the accuracy of the reward model that was
    fitted next, after the policy's own answers were compared, `stale` that of the one that the policy was
    trained on; a pair counts where its gold rewards differ.

    Returns:
      Each [rounds + 1, M]; nan where there is no such reward model.
    """
    at = lambda tree, i: jax.tree.map(lambda x: x[:, i], tree)
    own = lambda tree: jax.tree.map(lambda x: x[seeds], tree)
    prompts, reference = own(setup.draw_prompts(rlhf_setup.SAMPLES, setup.test_prompts, 7)), own(sft)
    twice = jax.tree.map(lambda x: np.repeat(x, 2, axis=1), prompts)
    rounds = jax.tree.leaves(states)[0].shape[1]
    found: dict[str, list[np.ndarray]] = {"gold": [], "kl": [], "fresh": [], "stale": []}
    for i in range(rounds):
        samples = setup.write(at(states.policy, i), reference, twice, setup.keys(5)[seeds])
        for name, place in (("stale", i), ("fresh", i + 1)):
            if 0 < place < rounds:
                scores = setup.score_answers(at(states.model, place), samples)
                found[name].append(order(scores, samples.gold))
            else:
                found[name].append(np.full(len(seeds), np.nan))
        found["gold"].append(samples.gold.mean(1))
        found["kl"].append(samples.kl.mean(1))
    return {name: np.array(rows) for name, rows in found.items()}


def order(scores: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Return the share [M] of neighbouring answers, of scores and gold [M, 2 N], whose order is right.

    Pairs of equal gold reward do not count; an equal score is half right.
    """
    gap, truth = (x[:, ::2] - x[:, 1::2] for x in (scores, gold))
    right = np.where(gap == 0, 0.5, (gap > 0) == (truth > 0))
    return (right * (truth != 0)).sum(1) / np.maximum((truth != 0).sum(1), 1)


def run_arm(setup: Setup, sft: Params, arm: Arm, runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """Go through an arm's rounds and measure them."""
    states = take_rounds(setup, sft, arm, runs)
    return measure(setup, sft, states, np.array([run.seed for run in runs]))


def tune(setup: Setup, folder: RunFolder, sft: Params) -> tuple[dict[str, float], Any]:
    """Return each arm's learning rate, and a table of the rates tried.

    It is that of the highest mean gold reward on the tuning seeds, over all coefficients.
    """
    config, tried = setup.config, {}
    swept = itertools.product(config.policy_rates, config.kl_coefs, range(config.tuning_seeds))
    runs = [Run(coef, rate, seed) for rate, coef, seed in swept]
    best: dict[str, float] = {}
    for name, arm in list_arms(config).items():
        if arm.tuned_as is not None:
            best[name] = best[arm.tuned_as]
            continue
        gold = folder.once(f"tuning_{name}.json".replace(" ", "_"), run_arm, setup, sft, arm, runs)["gold"]
        mean = np.array(gold[-1]).reshape(len(config.policy_rates), -1).mean(1)
        tried[name] = dict(zip(config.policy_rates, mean, strict=True))
        best[name] = config.policy_rates[int(mean.argmax())]
    return best, rates_table(tried, best)


def main(config: Config) -> None:
    """Train the stages before once, then go through every arm's rounds."""
    started = time.monotonic()
    use_cpu_devices()
    setup = Setup(config)
    folder = config.open_folder()
    base, _ = rlhf.pretrain(setup, folder)
    sft, _ = rlhf.fine_tune(setup, folder, base)
    rates, tried = tune(setup, folder, sft)
    seeds = range(config.tuning_seeds, config.seeds)
    found: dict[float, dict[str, Path]] = {coef: {} for coef in config.kl_coefs}
    for name, arm in list_arms(config).items():
        runs = [Run(coef, rates[name], seed) for coef in config.kl_coefs for seed in seeds]
        file = f"{name}.json".replace(" ", "_").replace(",", "").replace("'", "")
        rows = folder.once(file, run_arm, setup, sft, arm, runs)
        steps = np.linspace(0, config.rlhf_steps, arm.parts + 1)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
        for i, coef in enumerate(config.kl_coefs):
            part = slice(i * len(seeds), (i + 1) * len(seeds))
            found[coef][name] = Path(steps, **{k: np.array(v, float)[:, part] for k, v in rows.items()})
    draw(folder.path / "rounds.png", found)
    report(folder, config, CLAIM, found, tried)


if __name__ == "__main__":
    cli.main(Config, main)
