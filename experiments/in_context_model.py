"""The published model of `in_context.py`: examples in its context, or the same examples learnt by a LoRA."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from published import Published, load_published

from jaxrl_align.evaluate import Item, Task, load_task, make_prompts, run_task
from jaxrl_align.evaluate.run_task import draw_items
from jaxrl_align.feedback import pad_demonstrations
from jaxrl_align.nets import init_lora, overlay
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.types import Params, TokenBatch

RULES = ("raw", "calibrated")


def ask(model: Published, task: Task, config: Any, params: Params, shots: int, seed: int) -> dict[str, float]:
    """Return the shares of right answers, raw and calibrated, of one pass over the items."""
    how = {"shots": shots, "seed": seed, "limit": config.model_items, "balanced": True}
    result = run_task(task, model.lm, params, model.tokenizer, rule="calibrated", **how)
    raw = [int(np.argmax(item.log_probs)) == item.answer for item in result.items]
    return {"raw": float(np.mean(raw)), "calibrated": float(np.mean([bool(i.right) for i in result.items]))}


def say_the_commonest(items: Sequence[Item]) -> float:
    """Return the share of right answers of one who always says the option that is right most often."""
    right = Counter(int(option) for item in items for option in np.atleast_1d(item.answer))
    return max(right.values()) / len(items)


def as_batch(model: Published, task: Task, examples: Sequence[Item], length: int) -> TokenBatch:
    """Return examples as rows [k, length], each behind a bare prompt; the answers alone are learnt."""
    prompts = make_prompts(task, examples, [], model.tokenizer, room=length).prompts
    rows = []
    for item, prompt in zip(examples, prompts, strict=True):
        context, right = prompt.tokens.context, prompt.tokens.options[int(item.answer)]  # type: ignore[arg-type]
        rows.append(([*context, *right], [False] * len(context) + [True] * len(right)))
    return pad_demonstrations(rows, length)


def read_model(config: Any, folder: RunFolder) -> dict[str, Any]:
    """Ask the published model with more and more examples, and tune a LoRA on the same ones.

    Returns:
      By task: `shown` {rule: [draws, len(model_shots)]}, `tuned` {rate: [draws]} without an example in
      the context, after a LoRA has learnt the largest number of them, and `commonest` of the one answer that
      is right most often; shares of right answers.
    """
    model = load_published(config.model)
    part, constants = init_lora(
        jax.random.key(config.seed), model.params, rank=8, targets=["*query", "*value"]
    )
    frozen = overlay(model.params, constants)
    learner = make_lm_learner(model.lm, total_steps=config.model_steps)

    @jax.jit
    def tune(batch: TokenBatch, rate: Any) -> Params:
        state = learner.init(jax.random.key(config.seed), LMHParams(rate), part, frozen)
        step = lambda state, _: (learner.step(state, batch, frozen)[0], None)
        return jax.lax.scan(step, state, None, config.model_steps)[0].params

    def ask_all(task: Task) -> dict[str, Any]:
        shown: dict[str, list[list[float]]] = {rule: [] for rule in RULES}
        tuned: dict[str, list[float]] = {f"{rate:g}": [] for rate in config.model_rates}
        most, none = max(config.model_shots), ask(model, task, config, model.params, 0, 0)
        for draw in range(config.model_draws):
            rows = [none] + [ask(model, task, config, model.params, k, draw) for k in config.model_shots[1:]]
            for rule in RULES:
                shown[rule].append([row[rule] for row in rows])
            _, drawn = draw_items(task, shots=most, limit=config.model_items, seed=draw, balanced=True)
            batch = as_batch(model, task, drawn.examples, config.model_length)
            for rate in config.model_rates:
                params = overlay(frozen, tune(batch, rate))
                tuned[f"{rate:g}"].append(ask(model, task, config, params, 0, draw)["raw"])
            print(
                f"{task.name}, draw {draw}: " + "; ".join(f"{r} {np.round(shown[r][-1], 3)}" for r in RULES)
            )
        return {"shown": shown, "tuned": tuned}

    def read_task(task: Task) -> dict[str, Any]:
        items, _ = draw_items(task, shots=0, limit=config.model_items, seed=0, balanced=True)
        return folder.once(f"model_{task.name}", ask_all, task) | {"commonest": say_the_commonest(items)}

    return {task.name: read_task(task) for task in map(load_task, config.model_tasks)}


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("in_context")
