"""A language model measured on a task: prompts, scores or answers, metrics with intervals by items.

result = run_task(load_task("sst2"), lm, params, tokenizer, shots=4, rule="calibrated", limit=100)
print(result.metrics["accuracy"])
"""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.checks import check_counts
from jaxrl_align.data.tokenizers import Tokenizer
from jaxrl_align.evaluate.choices import (
    Choices,
    OptionScores,
    Rule,
    adjust_scores,
    encode_choices,
    make_option_scorer,
    share_prefix,
)
from jaxrl_align.evaluate.item_metrics import Measured, measure
from jaxrl_align.evaluate.shots import (
    BETWEEN,
    Prompt,
    content_free_inputs,
    draw_examples,
    make_prompts,
)
from jaxrl_align.evaluate.stop_strings import make_text_writer
from jaxrl_align.evaluate.task_format import Task
from jaxrl_align.evaluate.tasks import Item, extract_answer, read_items
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.runtime.checkpoint import fingerprint
from jaxrl_align.text.shared_prompt import count_virtual_tokens, read_shared_tokens
from jaxrl_align.types import Params

PROMPT_END = 80
"""Characters of a prompt that a result keeps."""
Progress = Callable[[int, int], None]
AT_ONCE = 256
"""Items between two reports of progress."""


class ItemResult(NamedTuple):
    """What became of one item."""

    place: str
    """File and line, without folders."""
    prompt_end: str
    """The prompt's last characters."""
    dropped: int
    """Examples that its context had no room for."""
    prediction: int | float | str | None
    """The option's place, a number, or the text that was read; None where no answer could be read."""
    answer: Any
    """The right one."""
    right: bool | None
    """None where the answer is a number on a scale."""
    log_probs: list[float]
    """Of each option, in nats, as it was scored, before the rule."""
    written: str
    """What was generated."""


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
      rule: how options are compared, see `choices.adjust_scores`. "mutual_information" takes an option's
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
    items = choose_items(task, read_items(task), limit)
    pool = read_items(task, "examples") if shots else []
    drawn = draw_examples(pool, items, shots, seed=seed, balanced=balanced)
    generates = thoughts or task.kind == "generate"
    length = (256 if thoughts else 48) if response_length is None else response_length
    check_counts(response_length=length, batch_size=batch_size)
    room = lm.config.context - count_virtual_tokens(params) - (length if generates else 0)
    write = functools.partial(make_prompts, tokenizer=tokenizer, room=room, thoughts=thoughts, chat=chat)
    prompts = write(task, items, drawn.examples).prompts
    if generates:
        stops = tuple(stop_tokens or [t for t in [tokenizer.stop_token] if t is not None])
        writer = _make_writer(lm, tokenizer, length, stops, _stop_strings(task, thoughts))
        texts = _write_answers(lm, params, writer, prompts, batch_size, progress)
        results = [_read_answer(task, *row, thoughts) for row in zip(items, prompts, texts, strict=True)]
    else:
        scorer = _make_scorer(lm, batch_size)
        scores = _score(scorer, params, prompts, progress)
        again = lambda item, dropped: write(task, [item], drawn.examples[dropped:]).prompts[0]
        contexts = _baseline_contexts(task, items, prompts, rule, again, tokenizer)
        rows = zip(items, prompts, scores, _score_baselines(scorer, params, contexts), strict=True)
        results = [_choose(task, item, prompt, s, rule, base) for item, prompt, s, base in rows]
    if fingerprint(params)["sha256"] != before:
        raise RuntimeError("evaluation must not change parameters; their hash differs from before")
    return TaskResult(
        task=task.name,
        kind=task.kind,
        shots=shots,
        rule="" if generates else rule,
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


def _parts(prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], tuple[int, ...], list[Choices]]]:
    """Yield items that have kept equally many examples: their indices, what they share, and the rest."""
    for dropped in sorted({prompt.dropped for prompt in prompts}):
        index = [i for i, prompt in enumerate(prompts) if prompt.dropped == dropped]
        yield index, *share_prefix([prompts[i].tokens for i in index])


@functools.lru_cache(maxsize=4)
def _make_scorer(lm: LanguageModel, batch_size: int) -> Callable[..., list[OptionScores]]:
    """Return one scorer for all tasks of a model, so that they share its programs."""
    return make_option_scorer(lm, batch_size=batch_size)


@functools.lru_cache(maxsize=8)
def _make_writer(
    lm: LanguageModel, tokenizer: Tokenizer, length: int, stops: tuple[int, ...], strings: tuple[str, ...]
) -> Callable[..., list[str]]:
    return make_text_writer(lm, tokenizer, response_length=length, stop_tokens=stops, stop_strings=strings)


def _score(
    score: Callable[..., list[OptionScores]],
    params: Params,
    prompts: Sequence[Prompt],
    report: Progress | None,
) -> list[OptionScores]:
    """Return the scores of every prompt's options."""
    found: dict[int, OptionScores] = {}
    for index, prefix, rest in _parts(prompts):
        for at in range(0, len(index), AT_ONCE):
            part = slice(at, at + AT_ONCE)
            found |= dict(zip(index[part], score(params, rest[part], prefix), strict=True))
            if report is not None:
                report(len(found), len(prompts))
    return [found[i] for i in range(len(prompts))]


def _baseline_contexts(
    task: Task,
    items: Sequence[Item],
    prompts: Sequence[Prompt],
    rule: Rule,
    write: Callable[[Item, int], Prompt],
    tokenizer: Tokenizer,
) -> list[tuple[Choices, ...]]:
    """Return each item's options behind the contexts whose scores a rule subtracts; none for other rules."""
    if rule not in ("mutual_information", "calibrated"):
        return [()] * len(items)
    made: dict[Any, tuple[Choices, ...]] = {}
    found: list[tuple[Choices, ...]] = []
    for item, prompt in zip(items, prompts, strict=True):
        key = (prompt.dropped if rule == "calibrated" else 0, prompt.continuations)
        if key not in made and rule == "calibrated":
            blanks = [item._replace(input=blank) for blank in content_free_inputs(task)]
            made[key] = tuple(write(blank, prompt.dropped).tokens for blank in blanks)
        elif key not in made:
            made[key] = (encode_choices(tokenizer, "", prompt.continuations),)
        found.append(made[key])
    return found


def _score_baselines(
    score: Callable[..., list[OptionScores]], params: Params, contexts: Sequence[tuple[Choices, ...]]
) -> list[np.ndarray | None]:
    """Return the options' log-probabilities in each item's contexts, averaged; equal ones are scored once.

    Behind several contexts it is the logarithm of the options' mean probability, where they sum to 1.
    """
    wanted = list(dict.fromkeys(context for several in contexts for context in several))
    found = dict(zip(wanted, score(params, wanted), strict=True)) if wanted else {}
    share = lambda nats: np.exp(nats - np.logaddexp.reduce(nats))
    mean = lambda several: np.log(np.mean([share(found[context].log_prob) for context in several], axis=0))
    return [
        None if not several else found[several[0]].log_prob if len(several) == 1 else mean(several)
        for several in contexts
    ]


def _choose(
    task: Task, item: Item, prompt: Prompt, scores: OptionScores, rule: Rule, baseline: np.ndarray | None
) -> ItemResult:
    """Return an item's result by the rule; on a scale, the mean of the numbers by their probabilities."""
    adjusted = adjust_scores(scores, item.options, rule, baseline)
    prediction: int | float = int(np.argmax(adjusted))
    right: bool | None = _is_right(prediction, item.answer)
    if task.options is not None and task.options.numbers:
        weights = np.exp(adjusted - adjusted.max())
        prediction = round(float(weights @ np.array(task.options.numbers) / weights.sum()), 6)
        right = None
    log_probs = [round(float(value), 6) for value in scores.log_prob]
    return _result(item, prompt, prediction, right, log_probs, "")


def _stop_strings(task: Task, thoughts: bool) -> tuple[str, ...]:
    if not thoughts or task.thoughts is None:
        return task.stop
    return task.thoughts.stop or (BETWEEN,)


def _write_answers(
    lm: LanguageModel,
    params: Params,
    write: Callable[..., list[str]],
    prompts: Sequence[Prompt],
    batch_size: int,
    report: Progress | None,
) -> list[str]:
    """Return what the model writes behind each prompt, the likeliest tokens, up to a stop string."""
    read = jax.jit(lambda params, tokens: read_shared_tokens(lm, params, tokens))
    found: dict[int, str] = {}
    for index, prefix, rest in _parts(prompts):
        with_prefix = read(params, jnp.asarray(prefix, jnp.int32)) if prefix else params
        order = np.argsort([len(item.context) for item in rest], kind="stable").tolist()
        for at in range(0, len(order), batch_size):
            part = order[at : at + batch_size]
            # The last batch is filled up, so that it shares the program.
            filled = part + part[:1] * (min(batch_size, len(order)) - len(part))
            texts = write(with_prefix, [rest[i].context for i in filled], jax.random.key(0))
            found |= {index[i]: text for i, text in zip(part, texts, strict=False)}
            if report is not None:
                report(len(found), len(prompts))
    return [found[i] for i in range(len(prompts))]


def _read_answer(task: Task, item: Item, prompt: Prompt, text: str, thoughts: bool) -> ItemResult:
    """Return an item's result from what was written."""
    reader = task.thoughts if thoughts else task.answer
    assert reader is not None
    found = extract_answer(reader.extractor, text)
    if task.answer is not None and found is not None:
        found = extract_answer(task.answer.extractor, found)
    prediction: int | str | None = found
    if task.kind == "choice":
        named = {option.casefold(): i for i, option in enumerate(item.options)}
        prediction = named.get((found or "").casefold())
    return _result(item, prompt, prediction, _is_right(prediction, item.answer), [], text)


def _is_right(prediction: Any, answer: Any) -> bool:
    return prediction in answer if isinstance(answer, tuple) else prediction == answer


def _result(item: Item, prompt: Prompt, prediction: Any, right: Any, log_probs: Any, text: str) -> ItemResult:
    end = prompt.text[-PROMPT_END:]
    return ItemResult(
        Path(item.place).name, end, prompt.dropped, prediction, item.answer, right, log_probs, text
    )
