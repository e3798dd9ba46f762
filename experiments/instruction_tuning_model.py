"""The published model of `instruction_tuning.py`: LoRA on more and more sets; pronouns; dialogues."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from instruction_tuning_ask import (
    ask_closed,
    ask_pronouns,
    choose_dialogues,
    first_utterance,
    make_reader_of_instructions,
    rate_summaries,
    sum_up,
)
from instruction_tuning_rows import (
    Mixture,
    describe,
    draw_batch,
    draw_orders,
    draw_questions,
    encode_examples,
)
from instruction_tuning_sets import Row
from published import Published, load_published

from jaxrl_align.evaluate import load_task, read_items
from jaxrl_align.evaluate.run_task import choose_items
from jaxrl_align.nets import init_lora, overlay
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.types import Params, TokenBatch

PRONOUNS = "bbh_disambiguation_qa"


def make_tuner(
    config: Any, model: Published
) -> tuple[Params, Callable[[TokenBatch], tuple[Params, list[float]]]]:
    """Return the published model with LoRA's zero at its queries and values, and what tunes it on rows."""
    key = jax.random.key(config.seed)
    part, constants = init_lora(key, model.params, rank=config.rank, targets=["*query", "*value"])
    frozen = overlay(model.params, constants)
    learner = make_lm_learner(model.lm, total_steps=config.model_steps)
    step = jax.jit(learner.step)

    def tune_model(batch: TokenBatch) -> tuple[Params, list[float]]:
        state = learner.init(key, LMHParams(config.model_rate), part, frozen)
        losses = []
        for at in range(config.model_steps):
            own = slice(at * config.model_batch, (at + 1) * config.model_batch)
            state, metrics = step(state, jax.tree.map(lambda x, own=own: jnp.asarray(x[own]), batch), frozen)
            losses.append(float(metrics["loss"]))
        return overlay(frozen, state.params), losses

    return overlay(frozen, part), tune_model


class Asked:
    """What the published model is asked under each condition."""

    def __init__(self, config: Any, model: Published, mixture: Mixture) -> None:
        """Draw the questions, which are the same under every condition."""
        self.config, self.model, tokenizer = config, model, model.tokenizer
        each, length = config.model_questions, config.length
        self.questions = draw_questions(tokenizer, mixture.asked, each, length, config.seed)
        self.dialogues = choose_dialogues(tokenizer, mixture.asked, config.dialogues, config.length)
        self.task = load_task(PRONOUNS)
        self.items = choose_items(self.task, read_items(self.task), config.items)
        long = config.long_answer
        self.reader = make_reader_of_instructions(model.lm, tokenizer, [tokenizer.stop_token], long=long)

    def closed(self, params: Params, chat: bool = False) -> dict[str, Any]:
        """Ask the closed questions."""
        return ask_closed(self.reader, params, self.questions, chat)

    def examples(self, params: Params, chat: bool = False) -> dict[str, Any]:
        """Ask about pronouns and let dialogues be summed up."""
        room = self.model.lm.config.context - self.config.long_answer
        texts = sum_up(self.reader, params, self.dialogues, chat)
        return {
            "pronouns": ask_pronouns(self.reader, params, self.task, self.items, room, chat),
            "summaries": texts,
            "rouge": rate_summaries(texts, self.dialogues),
        }


def tune_published(config: Any, folder: RunFolder) -> dict[str, Any]:
    """Tune the published model on more and more sets, and ask it unseen ones, pronouns and dialogues.

    Returns:
      `questions`; `sets`, by draw the order of the sets; `asked` {condition: [draws]} of what `ask_closed`
      returns, the conditions being "chat" and "0" untuned, then breadths; `loss` {breadth: [draws, steps]};
      `examples` {condition: ...} of untuned ones and the last breadth's first draw; and the dialogues.
    """
    model, mixture = load_published(config.model), Mixture(config.pilot, config.hold)
    asked = Asked(config, model, mixture)
    shape = {"length": config.model_length, "answer": config.answer_length}
    examples = encode_examples(model.tokenizer, mixture.rows, mixture.pool, **shape)
    count = config.model_steps * config.model_batch
    orders = draw_orders(examples.sizes(), count, config.model_draws, config.seed)
    untuned, tune_model = make_tuner(config, model)

    def go(n: int, i: int, whole: bool) -> dict[str, Any]:
        begin = time.monotonic()
        batch = draw_batch(examples, orders[i][:n], count, config.model_length, config.seed + i)
        params, losses = tune_model(batch)
        middle = time.monotonic()
        found = {"loss": losses, "asked": asked.closed(params)}
        found |= {"examples": asked.examples(params)} if whole else {}
        print(
            f"{n} sets, draw {i}: {middle - begin:.0f} s of tuning, {time.monotonic() - middle:.0f} of asking"
        )
        return found

    before = {
        name: folder.once(
            f"untuned_{name}",
            lambda chat=chat: {
                "asked": asked.closed(untuned, chat),
                "examples": asked.examples(untuned, chat),
            },
        )
        for name, chat in {"chat": True, "0": False}.items()
    }
    last = config.breadths[-1]
    after = {
        str(n): [
            folder.once(f"{n}_sets_draw_{i}", go, n, i, n == last and i == 0)
            for i in range(config.model_draws)
        ]
        for n in config.breadths
    }
    return {
        "questions": describe(asked.questions),
        "sets": orders,
        "asked": {name: [x["asked"]] for name, x in before.items()}
        | {n: [x["asked"] for x in draws] for n, draws in after.items()},
        "loss": {n: [x["loss"] for x in draws] for n, draws in after.items()},
        "examples": {name: x["examples"] for name, x in before.items()}
        | {str(last): after[str(last)][0]["examples"]},
        "dialogues": describe_dialogues(asked.dialogues),
    }


def describe_dialogues(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the prompts, the human summaries, and the first lines with their measures."""
    lead = [first_utterance(row) for row in rows]
    return {
        "prompts": [row.prompt for row in rows],
        "human": [row.completion for row in rows],
        "lead": lead,
        "lead_rouge": rate_summaries(lead, rows),
    }


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("instruction_tuning")
