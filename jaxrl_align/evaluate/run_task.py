"""A language model measured on a task: prompts, scores or answers, metrics with intervals by items.

result = run_task(load_task("sst2"), lm, params, tokenizer, shots=4, rule="calibrated", limit=100)
print(result.metrics["accuracy"])
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxrl_align.checks import check_counts
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.evaluate.ask_items import Asker, ItemResult, Progress
from jaxrl_align.evaluate.measures.item_metrics import Measured, measure
from jaxrl_align.evaluate.scoring.choices import share_prefix
from jaxrl_align.evaluate.scoring.option_rules import Rule
from jaxrl_align.evaluate.tasks.shots import DrawnExamples, draw_examples
from jaxrl_align.evaluate.tasks.task_format import Task
from jaxrl_align.evaluate.tasks.task_items import Item, read_items
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.runtime.checkpoint import fingerprint
from jaxrl_align.types import Params


@dataclass(frozen=True)
class TaskResult:
    """A task's result; `to_json` is the same whenever the same run is made on the same machine."""

    task: str
    kind: str
    shots: int
    rule: str
    """Of choices; empty where answers are generated."""
    thoughts: bool
    chat: bool
    seed: int
    metrics: dict[str, Measured]
    items: list[ItemResult]
    excluded: int
    """Rows that could not be examples, because they are test items."""
    shortened: int
    """Items whose context had no room for all examples."""
    unread: int
    """Items in whose generated text no answer was found."""
    shared_tokens: int
    """Tokens that all items begin with, read once."""
    parameters: str
    """SHA-256 of the parameters, before and after."""

    def to_json(self) -> bytes:
        """Return everything as JSON; undefined values are null, and times are not in it."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["metrics"] = {name: value.to_dict() for name, value in self.metrics.items()}
        values["items"] = [item._asdict() for item in self.items]
        text = json.dumps(values, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False)
        return text.encode() + b"\n"


def run_task(
    task: Task,
    lm: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    *,
    shots: int = 0,
    rule: Rule = "raw",
    limit: int | None = None,
    seed: int = 0,
    balanced: bool = False,
    thoughts: bool = False,
    chat: bool = False,
    response_length: int | None = None,
    stop_tokens: Sequence[int] | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> TaskResult:
    """Measure a language model on a task; its parameters are not changed, which is checked.

    Args:
      task: from `load_task`.
      lm: the language model.
      params: its parameters, whole or with an adapter laid over them.
      tokenizer: the model's.
      shots: examples in every prompt, drawn once by the seed for all items.
      rule: how options are compared, see `option_rules.adjust_scores`. "mutual_information" takes an option's
        likelihood without any context, "calibrated" behind the same prompt with each of
        `shots.CONTENT_FREE` in the place of the input, averaged.
      limit: at most about so many items, the same ones whatever the seed; None, all.
      seed: of the examples.
      balanced: examples of all labels in turn.
      thoughts: chain of thought: the model writes a solution, and the answer is read from it.
      chat: prompts in the tokenizer's chat template.
      response_length: the most tokens of a generated answer; None, 256 with thoughts, else 48.
      stop_tokens: each ends a generated answer; None, the tokenizer's.
      batch_size: items at a time.
      progress: called with the number of items done and of all.

    Raises:
      FileNotFoundError, ImportError, ValueError: as `read_items`, `draw_examples` and `make_prompts`;
        ValueError for counts and rules that cannot be.
      RuntimeError: if the parameters have changed.
    """
    before = fingerprint(params)["sha256"]
    items, drawn = draw_items(task, shots=shots, limit=limit, seed=seed, balanced=balanced)
    asker = Asker(
        task,
        lm,
        params,
        tokenizer,
        drawn.examples,
        rule=rule,
        thoughts=thoughts,
        chat=chat,
        response_length=response_length,
        stop_tokens=stop_tokens,
        batch_size=batch_size,
    )
    prompts, results, *_ = asker.ask(items, progress)
    if fingerprint(params)["sha256"] != before:
        raise RuntimeError("evaluation must not change parameters; their hash differs from before")
    return TaskResult(
        task=task.name,
        kind=task.kind,
        shots=shots,
        rule="" if asker.writes else rule,
        thoughts=thoughts,
        chat=chat,
        seed=seed,
        metrics=_measure_all(task, items, results),
        items=results,
        excluded=drawn.excluded,
        shortened=sum(prompt.dropped > 0 for prompt in prompts),
        unread=sum(result.prediction is None for result in results),
        shared_tokens=len(share_prefix([prompt.tokens for prompt in prompts])[0]),
        parameters=before,
    )


def _measure_all(task: Task, items: Sequence[Item], results: Sequence[ItemResult]) -> dict[str, Measured]:
    groups = [item.group for item in items] if task.group else None
    given = [result.prediction for result in results], [item.answer for item in items]
    options = [item.options for item in items]
    return {name: measure(name, *given, options=options, groups=groups) for name in task.metrics}


def draw_items(
    task: Task, *, shots: int, limit: int | None, seed: int, balanced: bool
) -> tuple[list[Item], DrawnExamples]:
    """Return a task's items and the examples of their prompts; arguments and errors as `run_task`."""
    items = choose_items(task, read_items(task), limit)
    pool = read_items(task, "examples") if shots else []
    return items, draw_examples(pool, items, shots, seed=seed, balanced=balanced)


def choose_items(task: Task, items: Sequence[Item], limit: int | None) -> list[Item]:
    """Return items drawn from all in one order for every limit, as they stand in the file.

    Groups stay whole where a metric judges them as a whole, and there may then be a few more.
    """
    if limit is None:
        return list(items)
    check_counts(limit=limit)
    order = np.random.default_rng(0).permutation(len(items))
    if "group_exact_match" not in task.metrics:
        return [items[i] for i in sorted(order[:limit])]
    members: dict[str | None, list[int]] = {}
    for i, item in enumerate(items):
        members.setdefault(item.group, []).append(i)
    chosen: dict[int, None] = {}
    for i in order:
        if len(chosen) >= limit:
            break
        chosen |= dict.fromkeys(members[items[i].group])
    return [items[i] for i in sorted(chosen)]
