"""Align a published model: annotators, a reward model, PPO, GRPO and DPO with LoRA from the same start.

SmolLM2-135M-Instruct (`make model`) writes sentences on everyday topics. Annotators who read VADER's lexicon
of human ratings (Hutto & Gilbert 2014), a black box without a gradient, prefer the more cheerful of two
sentences, with noise. A reward model learns their comparisons on the model's own features; PPO and GRPO
train a LoRA on it, DPO on the comparisons themselves. Judged on topics that none of them saw: by VADER, by
the reward model, and by SmolLM2 itself, asked whether a sentence is positive, which no method saw.

Claims: fine-tuning on human feedback beats the model that it starts from, by an independent judge (lectures
F12, F13); its gain is the larger the further the policy goes, measured in sqrt KL, until it is not.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from align_task import HELD_OUT, TOPICS, Task, Written

from jaxrl_align import align
from jaxrl_align.actors.text import Frozen
from jaxrl_align.evaluate import report_pairs
from jaxrl_align.learner import make_optimizer
from jaxrl_align.losses import best_of_n_kl
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.runtime import cli, loop, plots
from jaxrl_align.runtime.folder import RunFolder, open_run
from jaxrl_align.types import Comparisons, Learner

COLUMNS = ("vader", "zero_shot", "score", "kl")


@dataclass(frozen=True)
class Config:
    """About a quarter of an hour on two cores."""

    out: str = "runs/align"
    resume: bool = False
    seed: int = 0
    model: str = ""
    """A Hugging Face folder; empty takes `make model`'s."""
    prompt_length: int = 44
    """Tokens."""
    response_length: int = 24
    """Tokens."""
    pairs: int = 10
    """Comparisons on each of 30 topics, of which a fifth is held out."""
    annotator_temperature: float = 0.2
    """P(a preferred) = sigmoid((vader(a) - vader(b)) / temperature)."""
    decay: float = 0.01
    """Of the reward head's weights."""
    rank: int = 8
    kl_coef: float = 0.03
    """Of PPO and GRPO."""
    beta: float = 0.1
    """Of DPO."""
    ppo_steps: int = 16
    """Each of 16 answers, read twice."""
    grpo_steps: int = 16
    """Each of 4 topics with 8 answers."""
    dpo_steps: int = 24
    """Each of 16 pairs."""
    ppo_rate: float = 1e-3
    grpo_rate: float = 1e-3
    dpo_rate: float = 3e-4
    times: int = 8
    """Sentences on each held-out topic in an evaluation."""
    every: int = 8
    """Steps between evaluations."""


def collect(task: Task) -> dict[str, Any]:
    """Return the training topics' sentences, as JSON holds them."""
    written = task.write(task.lora, TOPICS, jax.random.key(task.config.seed), 2 * task.config.pairs)
    return written._asdict()


def learn_reward(task: Task, rows: Comparisons) -> dict[str, Any]:
    """Fit the reward head, and say how it does on held-out topics."""
    head, margins = task.fit_head(task.features(rows))
    test = slice(0, len(margins))
    lengths = np.stack([np.asarray(side.real.sum(-1))[test] for side in (rows.chosen, rows.rejected)], -1)
    said = str(report_pairs(np.asarray(margins), lengths))
    print(f"reward model on held-out topics: {said}", flush=True)
    return {"head": head, "report": said}


class Method:
    """One way from the same start: a learner, its first state and what it reads."""

    def __init__(self, learner: Learner, hparams: Any, frozen: Any, start: Any, part: Callable) -> None:
        self.learner, self.hparams, self.frozen, self.start, self.part = learner, hparams, frozen, start, part


def make_methods(task: Task, head: Any, rows: Comparisons) -> dict[str, Method]:
    """Return PPO, GRPO and DPO over the same base and the same first LoRA."""
    config, lm, base, lora = task.config, task.lm, task.base, task.lora
    frozen = Frozen(base, task.reward_model(head))
    score = functools.partial(align.score, lm)
    optimizer = make_optimizer(max_grad_norm=1.0)
    ppo = align.make_rlhf_learner(
        lm, score, task.text, sample_rows(task.prompts, batch_size=16), epochs=2, minibatches=2
    )
    grpo = align.make_group_learner(
        lm, score, task.text, sample_rows(task.prompts, batch_size=4), group_size=8, optimizer=optimizer
    )
    ppo_rates = align.RLHFHParams(config.ppo_rate, kl_coef=config.kl_coef, kl_horizon=jnp.inf)
    grpo_rates = align.GRPO.hparams._replace(learning_rate=config.grpo_rate, kl_coef=config.kl_coef)
    held_out = len(rows.prompt.tokens) // 5
    seen = jax.tree.map(lambda x: x[held_out:], rows)
    seen = align.with_reference(lm, base, distinct(seen))
    dpo = align.make_direct_learner(
        lm, sample_rows(seen, batch_size=16), total_steps=config.dpo_steps, warmup_steps=2
    )
    dpo_rates = align.DirectHParams(config.dpo_rate, beta=config.beta)
    of_policy = lambda params: params["lm"]
    return {
        "PPO": Method(ppo, ppo_rates, frozen, align.init_policy(lm, lora), of_policy),
        "GRPO": Method(grpo, grpo_rates, frozen, {"lm": lora}, of_policy),
        "DPO": Method(dpo, dpo_rates, base, lora, lambda params: params),
    }


def distinct(rows: Comparisons) -> Comparisons:
    """Return the comparisons of two different answers."""
    same = np.asarray((rows.chosen.tokens == rows.rejected.tokens).all(-1))
    return jax.tree.map(lambda x: x[np.flatnonzero(~same)], rows)


def run_method(task: Task, folder: RunFolder, name: str, method: Method, head: Any) -> dict[int, dict]:
    """Train by one method; return what the judges say of its sentences by step."""
    config = task.config
    steps = {"PPO": config.ppo_steps, "GRPO": config.grpo_steps, "DPO": config.dpo_steps}[name]
    folder = folder.sub(name.lower())

    def evaluate(step: int, state: Any, metrics: Any = None) -> None:
        folder.once(f"evaluation_{step:03d}.json", judged, task, method.part(state.params), head)

    state = method.learner.init(jax.random.key(config.seed + 1), method.hparams, method.start)
    evaluate(0, state)
    how = {"chunk": config.every, "checkpoint_every": config.every, "on_chunk": evaluate, "label": name}
    show = {"PPO": ("objective/scores", "objective/kl"), "GRPO": ("reward", "kl"), "DPO": ("loss",)}[name]
    loop.run(method.learner.step, state, steps, folder=folder, frozen=method.frozen, show=show, **how)
    files = sorted(folder.path.glob("evaluation_*.json"))
    return {int(file.stem[-3:]): folder.read_json(file.name) for file in files}


def judged(task: Task, part: Any, head: Any) -> dict[str, Any]:
    """Return what the judges say of sentences on held-out topics, and three of these."""
    written = task.write(part, HELD_OUT, jax.random.key(99), task.config.times)
    return scored(task, written, head, HELD_OUT, task.config.times)


def scored(task: Task, written: Written, head: Any, topics: list[str], times: int) -> dict[str, Any]:
    """Return every column [N] of written sentences, and the sentences."""
    prompts = jax.tree.map(lambda x: jnp.repeat(x, times, 0), task.ask(topics))
    scores = task.scores(head, prompts, written.tokens, written.real)
    columns = {"vader": written.vader, "zero_shot": written.zero_shot, "kl": written.kl, "score": scores}
    return columns | {"texts": written.texts}


def summarise(task: Task, row: dict[str, Any], start: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Return each column's mean gain over the start with its half-width over topics, and the KL."""
    found = {}
    for name in COLUMNS:
        gain = np.array(row[name]) - (0.0 if name == "kl" else np.array(start[name]))
        by_topic = gain.reshape(len(HELD_OUT), -1).mean(1)
        half = 2.13 * by_topic.std(ddof=1) / len(by_topic) ** 0.5  # Student's t, 15 degrees of freedom
        found[name] = (float(by_topic.mean()), float(half))
    return found


def best_of(start: dict[str, Any], times: int) -> dict[str, list[float]]:
    """Return the gains of the best of n by the reward model, from the start's own sentences."""
    score, vader = (np.array(start[name]).reshape(-1, times) for name in ("score", "vader"))
    ns = [n for n in (1, 2, 4, 8, 16) if n <= times]
    pick = jax.vmap(align.expected_best, (0, 0, None))
    gain = [float(jnp.mean(pick(jnp.asarray(score), jnp.asarray(vader), n)) - vader.mean()) for n in ns]
    return {"kl": [float(best_of_n_kl(n)) for n in ns], "vader": gain}


def report(task: Task, folder: RunFolder, paths: dict[str, dict[int, dict]], said: str) -> None:
    """Print the table and the samples, write result.json and the figure."""
    start = next(iter(paths.values()))[0]
    results = {
        name: {step: summarise(task, row, start) for step, row in path.items()}
        for name, path in paths.items()
    }
    chosen = best_of(start, task.config.times)
    means = {name: float(np.mean(start[name])) for name in COLUMNS}
    print(f"\nstart: VADER {means['vader']:.2f}, zero-shot judge {means['zero_shot']:.2f}")
    print("gains on held-out topics:")
    for name, path in results.items():
        last = path[max(path)]
        cells = ", ".join(f"{c} {last[c][0]:+.2f} +- {last[c][1]:.2f}" for c in COLUMNS)
        print(f"  {name:5} after {max(path):3} steps: {cells}")
    print(f"  best of {task.config.times}: vader {chosen['vader'][-1]:+.2f}, kl {chosen['kl'][-1]:.2f}")
    for i in (0, 5 * task.config.times, 11 * task.config.times):
        print(f"\n  start {start['texts'][i]!r}")
        for name, path in paths.items():
            print(f"  {name:5} {path[max(path)]['texts'][i]!r}")
    folder.write_json(
        "result.json", {"start": means, "methods": results, "best of n": chosen, "reward": said}
    )
    fig, ax = plots.figure("square root of KL(policy, start) [sqrt nats]", "gain of VADER's score")
    for name, path in results.items():
        points = [path[step] for step in sorted(path)]
        x, y = (np.array([p[c][0] for p in points]) for c in ("kl", "vader"))
        half = np.array([p["vader"][1] for p in points])
        ax.errorbar(np.sqrt(np.maximum(x, 0)), y, half, marker="o", markersize=4, capsize=3, label=name)
    ax.plot(np.sqrt(chosen["kl"]), chosen["vader"], "k--", label="best of n")
    ax.legend()
    plots.save_figure(fig, folder.path / "align.png")


def main(config: Config) -> None:
    """Collect, fit the reward model, train by three methods, judge."""
    started = time.monotonic()
    folder = open_run(config.out, config, resume=config.resume)
    task = Task(config)
    found = folder.once("collected.json", collect, task)
    written = Written(*(np.array(found[name]) for name in Written._fields[:-1]), found["texts"])
    rows = task.compare(written, np.random.default_rng(config.seed))
    clock = lambda: f"{time.monotonic() - started:.0f} s"
    print(f"{len(written.texts)} sentences, {len(rows.prompt.tokens)} comparisons; {clock()}", flush=True)
    reward = folder.once("reward_model.json", learn_reward, task, rows)
    head = jax.tree.map(jnp.float32, {name: np.array(leaf) for name, leaf in reward["head"].items()})
    print(f"{reward['report']}; {clock()}", flush=True)
    paths = {}
    for name, method in make_methods(task, head, rows).items():
        paths[name] = run_method(task, folder, name, method, head)
        print(f"{name} done; {clock()}", flush=True)
    report(task, folder, paths, reward["report"])
    print(f"\nalign.png and result.json are in {folder.path}; {clock()}")


if __name__ == "__main__":
    cli.main(Config, main)
