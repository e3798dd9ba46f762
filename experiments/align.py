"""Align a published model: comparisons, a reward model, then PPO, GRPO and DPO with LoRA from one start.

SmolLM2-135M-Instruct (`make model`) writes sentences on everyday topics. Annotators who read VADER's lexicon
of human ratings (Hutto & Gilbert 2014), a black box without a gradient, prefer the more cheerful of two
sentences, with noise; `--labels sst2` takes people's judgements of film reviews in their place. A reward
model learns the comparisons on the model's own features; PPO and GRPO follow it, DPO the comparisons
themselves. Judged on topics that none of them saw: by VADER, and by the start itself, asked whether a
sentence makes it happy or sad, a judge that no method saw.

It is one run: the intervals are over the held-out topics. The methods are not ranked by it, for they take
different numbers of answers and stop at different distances; what a distance is worth, the best of n answers
by the reward model tells. Another seed chose DPO's rate out of 3e-4, 1e-3 and 2e-3; the other rates and
coefficients were not tuned.
"""

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from align_report import report
from align_reward import HeadHParams, compare_reviews, compare_sentences, fit_head
from align_task import HELD_OUT, TOPICS, Task, score_features

from jaxrl_align import align
from jaxrl_align.actors.text import Frozen
from jaxrl_align.checks import check_divides
from jaxrl_align.learner import make_optimizer
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.runtime import Claim, cli, loop
from jaxrl_align.runtime.folder import RunConfig, RunFolder
from jaxrl_align.types import Comparisons, Learner, PaddedTokens, Params

CLAIM = Claim(
    "A policy aligned with human feedback beats the model it started from, by a judge that it never saw; the"
    " further it goes, the more it gains.",
    rows=("F2", "F10", "F12", "F13"),
    minutes=15,
)
LABELS = ("vader", "sst2")


@dataclass(frozen=True)
class Config(RunConfig):
    """About a quarter of an hour on two cores."""

    out: str = "runs/align"
    seed: int = 1
    """Seed 0 chose the learning rate of DPO."""
    model: str = ""
    """A Hugging Face folder of a chat model; empty takes the one that `make model` made."""
    labels: str = "vader"
    """Who compares: "vader", simulated annotators, or "sst2", people, of film reviews."""
    prompt_length: int = 32
    """Tokens."""
    response_length: int = 24
    """Tokens."""
    answers: int = 20
    """Sentences that are written on each of 30 topics for the annotators."""
    comparisons: int = 600
    """Labels."""
    annotator_temperature: float = 0.2
    """P(a preferred) = sigmoid((vader(a) - vader(b)) / temperature)."""
    rank: int = 8
    """Of the LoRA on queries and values."""
    kl_coef: float = 0.03
    """Of PPO and GRPO."""
    beta: float = 0.1
    """Of DPO."""
    ppo_steps: int = 14
    """Each of 16 answers, read twice."""
    grpo_steps: int = 12
    """Each of 8 answers to 4 prompts."""
    dpo_steps: int = 16
    """Each of 16 comparisons."""
    ppo_rate: float = 1e-3
    """Learning rate of PPO."""
    grpo_rate: float = 1e-3
    """Learning rate of GRPO."""
    dpo_rate: float = 1e-3
    """Learning rate of DPO."""
    judged: int = 8
    """Sentences on each of 16 held-out topics in an evaluation."""
    evaluations: int = 2
    """Of each method, evenly spaced; the last is at its end."""

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes."""
        if self.labels not in LABELS:
            raise ValueError(f"labels must be vader or sst2; got {self.labels!r}")
        for name, least in {"answers": 2, "comparisons": 16, "judged": 2, "evaluations": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        for name in ("ppo_steps", "grpo_steps", "dpo_steps"):
            check_divides(self.evaluations, getattr(self, name), "evaluations", name)


class Method(NamedTuple):
    """One way from the same start."""

    learner: Learner
    hparams: Any
    frozen: Any
    start: Params
    steps: int
    show: tuple[str, ...]


def gather(task: Task, config: Config) -> tuple[Comparisons, np.ndarray, np.ndarray]:
    """Return comparisons [N, ...], features of their sides [N, 2, width], and of all that was written."""
    rng = np.random.default_rng(config.seed)
    written = task.write(task.lora, TOPICS, jax.random.key(config.seed), config.answers)
    seen = written.features.reshape(-1, written.features.shape[-1])
    if config.labels == "sst2":
        return *compare_reviews(task, rng, config.comparisons), seen
    times = -(-config.comparisons // (len(TOPICS) * (config.answers // 2)))
    found = compare_sentences(task, written, rng, times, config.annotator_temperature)
    rows, features = jax.tree.map(lambda x: x[: config.comparisons], found)
    return rows, features, seen


def learn(task: Task, config: Config) -> dict[str, Any]:
    """Collect comparisons, fit the reward head; return it with the comparisons that DPO will read."""
    rows, features, seen = gather(task, config)
    different = np.flatnonzero((rows.chosen.tokens != rows.rejected.tokens).any(-1))
    return {
        "head": fit_head(features, seen, HeadHParams()),
        "rows": jax.tree.map(lambda x: x[different], (rows.prompt, rows.chosen, rows.rejected)),
    }


def make_methods(task: Task, config: Config, head: Params, rows: Comparisons) -> dict[str, Method]:
    """Return PPO, GRPO and DPO over the same base and the same first LoRA."""
    lm, base, lora = task.lm, task.base, task.lora
    frozen = Frozen(base, task.reward_model(head))
    prompts = lambda count: sample_rows(task.prompts, batch_size=count)
    ppo = align.make_rlhf_learner(lm, task.score, task.text, prompts(16), epochs=2, minibatches=2)
    ppo_rates = align.RLHFHParams(config.ppo_rate, kl_coef=config.kl_coef, kl_horizon=jnp.inf)
    grpo = align.make_group_learner(
        lm, task.score, task.text, prompts(4), group_size=8, optimizer=make_optimizer(max_grad_norm=1.0)
    )
    grpo_rates = align.GRPO.hparams._replace(learning_rate=config.grpo_rate, kl_coef=config.kl_coef)
    read = align.with_reference(lm, base, jax.tree.map(lambda x: x[: 16 * config.dpo_steps], rows))
    dpo = align.make_direct_learner(
        lm, sample_rows(read, batch_size=16), total_steps=config.dpo_steps, warmup_steps=2
    )
    dpo_rates = align.DirectHParams(config.dpo_rate, beta=config.beta)
    of = (config.ppo_steps, config.grpo_steps, config.dpo_steps)
    return {
        "PPO": Method(
            ppo, ppo_rates, frozen, align.init_policy(lm, lora), of[0], ("objective/scores", "objective/kl")
        ),
        "GRPO": Method(grpo, grpo_rates, frozen, {"lm": lora}, of[1], ("reward", "objective/kl")),
        "DPO": Method(dpo, dpo_rates, base, lora, of[2], ("loss", "rewards/accuracies")),
    }


def judge_part(task: Task, config: Config, part: Params, head: Params) -> dict[str, Any]:
    """Return what the judges say of sentences on held-out topics, columns [N, G], and the sentences."""
    written = task.write(part, HELD_OUT, jax.random.key(99), config.judged)
    score = score_features(head, written.features)
    return {name: getattr(written, name) for name in ("vader", "happy", "kl", "texts")} | {"score": score}


def run_method(
    task: Task, config: Config, folder: RunFolder, name: str, method: Method, head: Params
) -> dict[int, Any]:
    """Train by one method; return what the judges say by step."""
    folder = folder.sub(name.lower())

    every = method.steps // config.evaluations

    def evaluate(step: int, state: Any, metrics: Any) -> None:
        if step % every:
            return
        part = state.params.get("lm", state.params)
        folder.once(f"evaluation_{step:03d}.json", judge_part, task, config, part, head)

    state = method.learner.init(jax.random.key(config.seed + 1), method.hparams, method.start)
    how = {"folder": folder, "frozen": method.frozen, "label": f"{name:5}", "show": method.show}
    how |= {"chunk": 1, "checkpoint_every": every, "on_chunk": evaluate}
    loop.run(method.learner.step, state, method.steps, **how)
    files = sorted(folder.path.glob("evaluation_*.json"))
    return {int(file.stem[-3:]): folder.read_json(file.name) for file in files}


def as_array(leaf: Any) -> jax.Array:
    """Return JSON's lists as an array, of integers or of float32."""
    array = np.array(leaf)
    return jnp.asarray(array, jnp.int32 if array.dtype.kind == "i" else jnp.float32)


def main(config: Config) -> None:
    """Collect, fit the reward model, train by three methods, judge."""
    started = time.monotonic()
    clock = lambda: f"{time.monotonic() - started:.0f} s"
    folder = config.open_folder()
    task = Task(config.model, config.rank, config.prompt_length, config.response_length, config.seed)
    found = folder.once("reward_model.json", learn, task, config)
    head = {name: as_array(leaf) for name, leaf in found["head"].items()}
    rows = Comparisons(*(PaddedTokens(*map(as_array, side)) for side in found["rows"]))
    print(f"{len(rows.prompt.tokens)} comparisons, and a reward model of them; {clock()}", flush=True)
    start = folder.once("evaluation_start.json", judge_part, task, config, task.lora, head)
    paths = {}
    for name, method in make_methods(task, config, head, rows).items():
        paths[name] = {0: start} | run_method(task, config, folder, name, method, head)
        print(f"{name} done; {clock()}", flush=True)
    report(folder, config, CLAIM, paths)


if __name__ == "__main__":
    cli.main(Config, main)
