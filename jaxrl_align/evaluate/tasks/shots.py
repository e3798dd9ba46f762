"""Prompts with none, one or several examples (Brown et al. 2020), chain of thought, instruction prompts.

pool, items = read_items(task, "examples"), read_items(task, "test")
drawn = draw_examples(pool, items, 4, seed=0)
prompts = make_prompts(task, items, drawn.examples, tokenizer, room=1000)
"""

import os
import string
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxrl_align.checks import check_counts
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.evaluate.scoring.choices import Choices, encode_choices, encode_once
from jaxrl_align.evaluate.tasks.task_format import Task
from jaxrl_align.evaluate.tasks.task_items import Item, look_up

BETWEEN = "\n\n"
"""Stands between the description, the examples and the question."""
CONTENT_FREE = ("N/A", "[MASK]", "")
"""Inputs that say nothing (Zhao et al. 2021, arXiv:2102.09690, who average over these three)."""


class DrawnExamples(NamedTuple):
    """Examples, and how many rows could not be any."""

    examples: list[Item]
    """The last one stands next to the question."""
    excluded: int
    """Rows of the pool whose input is that of a test item."""


class Prompt(NamedTuple):
    """What a model reads for one item."""

    text: str
    """Up to where the answer begins."""
    continuations: tuple[str, ...]
    """Of a choice or a pair, the options as they continue the text."""
    tokens: Choices
    """Text and continuations; of a generated answer without options."""
    dropped: int
    """Examples that the context had no room for, the oldest ones."""


class Prompts(NamedTuple):
    """The prompts of all items."""

    shared: str
    """What every prompt begins with that has kept its examples: the description and the examples, up to the
    question."""
    prompts: list[Prompt]


class TaggedPrompt(NamedTuple):
    """An instruction's text and of which of InstructGPT's kinds it is (Ouyang et al. 2022, appendix A.1)."""

    kind: Literal["plain", "few-shot", "user-based"]
    text: str
    use_case: str = ""
    """Of a user-based prompt: what the user wants the model for, such as "brainstorming"."""


def plain_prompt(instruction: str) -> TaggedPrompt:
    """Return the prompt of any task, stated in words alone."""
    return TaggedPrompt("plain", instruction)


def few_shot_prompt(instruction: str, pairs: Sequence[tuple[str, str]], query: str) -> TaggedPrompt:
    """Return an instruction with several queries and their answers, then the query to be answered.

    Args:
      instruction: what is to be done with each query.
      pairs: queries with their answers, at least one.
      query: what is asked; none of the pairs'.

    Raises:
      ValueError: for no pairs, or a query among them.
    """
    if not pairs:
        raise ValueError("a few-shot prompt must show at least one pair; got none; take plain_prompt")
    if normalise_text(query) in {normalise_text(asked) for asked, _ in pairs}:
        raise ValueError(f"the query must not be among the pairs; got {query[:60]!r}; remove that pair")
    shown = [f"{asked}\n{answer}" for asked, answer in pairs]
    return TaggedPrompt("few-shot", BETWEEN.join([instruction, *shown, query]) + "\n")


def user_based_prompt(use_case: str, request: str) -> TaggedPrompt:
    """Return a request as a user with a use case would make it, tagged by that use case.

    Args:
      use_case: such as "open question answering"; a tag, which the model does not read.
      request: what the model reads.

    Raises:
      ValueError: for an empty use case.
    """
    if not use_case.strip():
        raise ValueError("a user-based prompt must name its use case; got none; take plain_prompt")
    return TaggedPrompt("user-based", request, use_case)


def normalise_text(text: str) -> str:
    """Return a text in lower case with single spaces, as test items and examples are compared."""
    return " ".join(text.split()).casefold()


def draw_examples(
    pool: Sequence[Item], items: Sequence[Item], count: int, *, seed: int, balanced: bool = False
) -> DrawnExamples:
    """Draw examples for a task, the same for all of its items.

    With one seed the examples of a smaller count are among those of a larger one, next to the question.

    Args:
      pool: the examples' rows.
      items: the test items; a row with the input of one is no example.
      count: at least 0.
      seed: of the draw.
      balanced: take labels in turn, as far as the pool has them.

    Raises:
      ValueError: for a pool that has too few rows left.
    """
    if count < 0:
        raise ValueError(f"the number of examples must be at least 0; got {count}")
    if count == 0:
        return DrawnExamples([], 0)
    tested = {normalise_text(item.input) for item in items}
    left = [item for item in pool if normalise_text(item.input) not in tested]
    excluded = len(pool) - len(left)
    if len(left) < count:
        raise ValueError(
            f"{count} examples must be drawn from rows that are no test items; got {len(left)} of "
            f"{len(pool)}; ask for fewer, or name another file under [[examples]]"
        )
    rng = np.random.default_rng(seed)
    order = [left[i] for i in rng.permutation(len(left))]
    if balanced:
        order = _take_in_turn(order, rng)
    return DrawnExamples(order[:count][::-1], excluded)


def _take_in_turn(order: Sequence[Item], rng: np.random.Generator) -> list[Item]:
    """Return items so that labels come in turn, in a drawn order."""
    by_label: dict[str, list[Item]] = {}
    for item in order:
        by_label.setdefault(str(item.answer), []).append(item)
    labels = sorted(by_label)
    lists = [by_label[labels[i]] for i in rng.permutation(len(labels))]
    return [row[i] for i in range(max(map(len, lists))) for row in lists if i < len(row)]


def check_examples(examples: Sequence[Item], items: Sequence[Item]) -> None:
    """Raise ValueError, with both places, for an example that has the input of a test item."""
    tested = {normalise_text(item.input): item.place for item in items}
    for example in examples:
        if place := tested.get(normalise_text(example.input)):
            raise ValueError(
                f"{example.place}: an example must be no test item; its input is that of {place}; remove it"
            )


def right_text(task: Task, item: Item) -> str:
    """Return the right answer of an item as an example shows it, the first one where several are right."""
    answer = item.answer[0] if isinstance(item.answer, tuple) else item.answer
    if isinstance(answer, float) and task.options is not None:
        return str(min(task.options.numbers, key=lambda number: abs(number - answer)))
    return item.options[answer] if isinstance(answer, int) else str(answer)


def make_prompts(
    task: Task,
    items: Sequence[Item],
    examples: Sequence[Item],
    tokenizer: Tokenizer,
    *,
    room: int,
    thoughts: bool = False,
    chat: bool = False,
) -> Prompts:
    """Return the prompts of items: the description, the examples, the question.

    Args:
      task: the task.
      items: what is asked, at least one.
      examples: shown before each question, the last one next to it; none for zero-shot.
      tokenizer: the model's.
      room: tokens that may be read, a prompt's and its longest option's but the last; of a prompt that takes
        more the oldest examples are left out, whole, never anything of the question.
      thoughts: chain of thought: examples have their solutions written out, and the model is to write one.
      chat: as a conversation in the tokenizer's chat template, an example being a turn of each side.

    Raises:
      ValueError: with file and line, for a question that does not fit alone, an example that is a test item,
        options that tokenise to nothing or alike; for examples or thoughts where the task has none.
    """
    check_counts(items=len(items), room=room)
    if task.kind == "pair" and (examples or thoughts or chat):
        raise ValueError(f"task {task.name} compares whole texts: it takes no examples, thoughts or chat")
    if thoughts and task.thoughts is None:
        raise ValueError(f"{task.path} must have a table [thoughts] for chain of thought; it has none")
    check_examples(examples, items)
    shown = [(example.input, _shown_answer(task, example, thoughts)) for example in examples]
    write = lambda kept, question: _write(task, kept, question, tokenizer, thoughts, chat)
    prompts = []
    for item in items:
        options = () if thoughts else continuations_of(task, item, chat)
        texts = (write(shown[dropped:], item.input) for dropped in range(len(shown) + 1))
        try:
            prompts.append(_fit(texts, options, tokenizer, room, chat))
        except ValueError as error:
            raise ValueError(f"{item.place}: {error}") from error
    return Prompts(os.path.commonprefix([write(shown, question) for question in "01"]), prompts)


def continuations_of(task: Task, item: Item, chat: bool = False) -> tuple[str, ...]:
    """Return an item's options as they continue the prompt, the space between belonging to them."""
    before = "" if chat or task.kind == "pair" else task.separator
    return tuple(before + option for option in item.options)


def content_free_inputs(task: Task) -> list[str]:
    """Return a task's inputs with each of `CONTENT_FREE` in the place of every field."""
    parts = [(before, name) for before, name, _, _ in string.Formatter().parse(task.template)]
    return [
        "".join(text + (blank if name is not None else "") for text, name in parts) for blank in CONTENT_FREE
    ]


def _shown_answer(task: Task, example: Item, thoughts: bool) -> str:
    answer = right_text(task, example)
    if not thoughts:
        return answer
    assert task.thoughts is not None
    solution = str(look_up(example.fields, task.thoughts.field)).strip()
    closing = task.thoughts.closing.replace("{answer}", answer)
    return f"{task.thoughts.opening} {solution} {closing}"


def _write(
    task: Task,
    shown: Sequence[tuple[str, str]],
    question: str,
    tokenizer: Tokenizer,
    thoughts: bool,
    chat: bool,
) -> str:
    """Return a prompt's text from its examples and its question."""
    opening = task.thoughts.opening if thoughts and task.thoughts else ""
    head = [task.description] if task.description else []
    if not chat:
        blocks = [f"{asked}{task.separator}{answer}" for asked, answer in shown]
        ask = f"{question}{task.separator}{opening}" if opening else question
        return BETWEEN.join([*head, *blocks, ask])
    if tokenizer.chat_template is None:
        raise ValueError("this tokenizer has no chat template; leave chat out, or load one that has")
    asked = [*(text for text, _ in shown), question]
    asked[0] = BETWEEN.join([*head, asked[0]])
    turns = [{"role": "user", "content": asked[0]}]
    for (_, answer), text in zip(shown, asked[1:], strict=True):
        turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": text}]
    return tokenizer.chat_template.render(turns, add_generation_prompt=True) + opening


def _encode(tokenizer: Tokenizer, text: str, options: Sequence[str], marked: bool) -> Choices:
    if options:
        return encode_choices(tokenizer, text, options, marked=marked)
    return Choices(tuple(encode_once(tokenizer, [text], marked)[0]), ())


def _fit(
    texts: Iterable[str], options: tuple[str, ...], tokenizer: Tokenizer, room: int, marked: bool
) -> Prompt:
    """Return the first prompt that fits, of those with ever fewer examples."""
    length = 0
    for dropped, text in enumerate(texts):
        tokens = _encode(tokenizer, text, options, marked)
        # An option's last token is predicted, never read.
        length = len(tokens.context) + max(map(len, tokens.options), default=1) - 1
        if length <= room:
            return Prompt(text, options, tokens, dropped)
    raise ValueError(
        f"the question alone must fit the {room} tokens that the context leaves; got {length}; shorten it, "
        "or take a model with a longer context"
    )
