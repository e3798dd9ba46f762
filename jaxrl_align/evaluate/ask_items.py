"""A language model that is asked a task's items: their options are scored, or their answers written.

asker = Asker(task, lm, params, tokenizer, examples, rule="calibrated")
asked = asker.ask(items)
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.checks import check_counts
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.evaluate.scoring.choices import (
    Choices,
    OptionScores,
    encode_choices,
    make_option_scorer,
    share_prefix,
)
from jaxrl_align.evaluate.scoring.option_rules import BASELINES, Rule, adjust_scores
from jaxrl_align.evaluate.scoring.stop_strings import make_text_writer
from jaxrl_align.evaluate.tasks.shots import BETWEEN, Prompt, content_free_inputs, make_prompts
from jaxrl_align.evaluate.tasks.task_format import Task
from jaxrl_align.evaluate.tasks.task_items import Item, extract_answer
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.text.shared_prompt import count_virtual_tokens, read_shared_tokens
from jaxrl_align.types import Params

PROMPT_END = 80
"""Characters of a prompt that a result keeps."""
AT_ONCE = 256
"""Items between two reports of progress."""
Progress = Callable[[int, int], None]


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


class AskedItems(NamedTuple):
    """What came of asking."""

    prompts: list[Prompt]
    results: list[ItemResult]
    scores: list[np.ndarray]
    """Each item's options by the rule, the higher the better; none where answers are written."""
    seconds: float
    """Of the model alone, without prompts and tokens being made; programs are compiled at their first use."""
    tokens: int
    """Read and written: no padding, and what all items begin with counts once."""


@dataclass(frozen=True)
class Asker:
    """A language model and how it is asked a task's items.

    Raises:
      ValueError: for a length or batch size below 1, or a rule that is none or has nothing to subtract.
    """

    task: Task
    lm: LanguageModel
    params: Params
    """Whole, or with an adapter laid over them."""
    tokenizer: Tokenizer
    """The model's."""
    examples: Sequence[Item] = ()
    """In every prompt."""
    rule: Rule = "raw"
    """How options are compared, see `run_task`."""
    thoughts: bool = False
    chat: bool = False
    response_length: int | None = None
    """The most tokens of a written answer; None, 256 with thoughts, else 48."""
    stop_tokens: Sequence[int] | None = None
    """Each ends a written answer; None, the tokenizer's."""
    batch_size: int = 32

    def __post_init__(self) -> None:
        """Check the counts and the rule, before the model is asked."""
        check_counts(response_length=self._length, batch_size=self.batch_size)
        if self.rule not in get_args(Rule):
            raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}; got {self.rule!r}")
        if self.task.kind == "pair" and not self.task.template and self.rule in BASELINES:
            raise ValueError(
                f"rule {self.rule!r} subtracts the options' scores without the input, and task "
                f"{self.task.name} has none: all would be alike; take another rule"
            )

    @property
    def writes(self) -> bool:
        """Whether answers are written; otherwise options are scored."""
        return self.thoughts or self.task.kind == "generate"

    @property
    def _length(self) -> int:
        return (256 if self.thoughts else 48) if self.response_length is None else self.response_length

    def make_prompts(self, items: Sequence[Item], dropped: int = 0) -> list[Prompt]:
        """Return the prompts of items, less the first `dropped` examples; errors as `shots.make_prompts`."""
        room = self.lm.config.context - count_virtual_tokens(self.params) - self.writes * self._length
        examples, how = self.examples[dropped:], {"thoughts": self.thoughts, "chat": self.chat}
        return make_prompts(self.task, items, examples, self.tokenizer, room=room, **how).prompts

    def ask(self, items: Sequence[Item], progress: Progress | None = None) -> AskedItems:
        """Return what the model answers to items, in their order.

        Args:
          items: at least one.
          progress: called with the number of items done and of all.

        Raises:
          ValueError: as `shots.make_prompts`, and for an unknown rule.
        """
        prompts = self.make_prompts(items)
        return (self._write if self.writes else self._choose)(items, prompts, progress)

    def _choose(self, items: Sequence[Item], prompts: list[Prompt], progress: Progress | None) -> AskedItems:
        scorer, contexts = _make_scorer(self.lm, self.batch_size), self._baseline_contexts(items, prompts)
        begin = time.perf_counter()
        raw = _score(scorer, self.params, prompts, progress)
        baselines = _score_baselines(scorer, self.params, contexts)
        seconds = time.perf_counter() - begin
        rows = zip(raw, items, baselines, strict=True)
        scores = [adjust_scores(own, item.options, self.rule, base) for own, item, base in rows]
        results = [_choose(self.task, *row) for row in zip(items, prompts, raw, scores, strict=True)]
        read = count_read(prompts) + _count(
            dict.fromkeys(context for several in contexts for context in several)
        )
        return AskedItems(prompts, results, scores, seconds, read)

    def _write(self, items: Sequence[Item], prompts: list[Prompt], progress: Progress | None) -> AskedItems:
        stops = tuple(self.stop_tokens or self.tokenizer.stop_tokens)
        strings = _stop_strings(self.task, self.thoughts)
        read, write = _make_writer(self.lm, self.tokenizer, self._length, stops, strings)
        begin = time.perf_counter()
        texts = _write_answers(read, write, self.params, prompts, self.batch_size, progress)
        seconds = time.perf_counter() - begin
        rows = zip(items, prompts, texts, strict=True)
        results = [_read_answer(self.task, *row, self.thoughts) for row in rows]
        written = sum(len(self.tokenizer.encode(text, special=False)) for text in texts)
        return AskedItems(prompts, results, [], seconds, count_read(prompts) + written)

    def _baseline_contexts(
        self, items: Sequence[Item], prompts: Sequence[Prompt]
    ) -> list[tuple[Choices, ...]]:
        """Return each item's options behind the contexts whose scores the rule subtracts, if it does."""
        if self.rule not in BASELINES:
            return [()] * len(items)
        made: dict[Any, tuple[Choices, ...]] = {}
        found: list[tuple[Choices, ...]] = []
        for item, prompt in zip(items, prompts, strict=True):
            key = (prompt.dropped if self.rule == "calibrated" else 0, prompt.continuations)
            if key not in made and self.rule == "calibrated":
                blanks = [item._replace(input=blank) for blank in content_free_inputs(self.task)]
                made[key] = tuple(self.make_prompts([b], prompt.dropped)[0].tokens for b in blanks)
            elif key not in made:
                made[key] = (encode_choices(self.tokenizer, "", prompt.continuations),)
            found.append(made[key])
        return found


def count_read(prompts: Sequence[Prompt]) -> int:
    """Return the tokens that are read for prompts and their options; what all begin with counts once."""
    return sum(len(prefix) + _count(rest) for _, prefix, rest in _parts(prompts))


def _count(contexts: Iterable[Choices]) -> int:
    # An option's last token is predicted, never read.
    return sum(len(c.context) + sum(len(option) - 1 for option in c.options) for c in contexts)


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
) -> tuple[Callable[..., Params], Callable[..., list[str]]]:
    """Return what reads the tokens that prompts share, and what writes behind them."""
    read = jax.jit(lambda params, tokens: read_shared_tokens(lm, params, tokens))
    return read, make_text_writer(
        lm, tokenizer, response_length=length, stop_tokens=stops, stop_strings=strings
    )


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


def _choose(task: Task, item: Item, prompt: Prompt, raw: OptionScores, scores: np.ndarray) -> ItemResult:
    """Return an item's result by the rule; on a scale, the mean of the numbers by their probabilities."""
    prediction: int | float = int(np.argmax(scores))
    right: bool | None = _is_right(prediction, item.answer)
    if task.options is not None and task.options.numbers:
        weights = np.exp(scores - scores.max())
        prediction = round(float(weights @ np.array(task.options.numbers) / weights.sum()), 6)
        right = None
    log_probs = [round(float(value), 6) for value in raw.log_prob]
    return _result(item, prompt, prediction, right, log_probs, "")


def _stop_strings(task: Task, thoughts: bool) -> tuple[str, ...]:
    if not thoughts or task.thoughts is None:
        return task.stop
    return task.thoughts.stop or (BETWEEN,)


def _write_answers(
    read: Callable[..., Params],
    write: Callable[..., list[str]],
    params: Params,
    prompts: Sequence[Prompt],
    batch_size: int,
    report: Progress | None,
) -> list[str]:
    """Return what the model writes behind each prompt, the likeliest tokens, up to a stop string."""
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
    prediction: int | float | str | None = found
    if task.options is not None and task.options.numbers:
        return _result(item, prompt, _as_number(found), None, [], text)
    if task.kind == "choice":
        named = {option.casefold(): i for i, option in enumerate(item.options)}
        prediction = named.get((found or "").casefold())
    return _result(item, prompt, prediction, _is_right(prediction, item.answer), [], text)


def _as_number(text: str | None) -> float | None:
    """Return the finite number that a text is, None if it is none."""
    with contextlib.suppress(TypeError, ValueError):
        if math.isfinite(number := float(text)):  # type: ignore[arg-type]
            return number
    return None


def _is_right(prediction: Any, answer: Any) -> bool:
    return prediction in answer if isinstance(answer, tuple) else prediction == answer


def _result(item: Item, prompt: Prompt, prediction: Any, right: Any, log_probs: Any, text: str) -> ItemResult:
    end = prompt.text[-PROMPT_END:]
    return ItemResult(
        Path(item.place).name, end, prompt.dropped, prediction, item.answer, right, log_probs, text
    )
