"""What `instruction_tuning.py` asks a model: closed questions, pronouns (E5) and dialogues (E8).

What is written is greedy. A closed answer is the first line that is written; it has the format if it is one
of the allowed answers and nothing else, but for case and a full stop.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from instruction_tuning_rows import Question, normalise
from instruction_tuning_sets import Row

from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.evaluate import (
    Item,
    Task,
    encode_choices,
    make_option_scorer,
    make_prompts,
    make_text_writer,
    rouge_l,
    rouge_n,
)
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.types import Params

ROUGE: dict[str, Callable[[str, str], float]] = {
    "ROUGE-1": lambda said, gold: rouge_n(said, gold, 1).f1,
    "ROUGE-2": lambda said, gold: rouge_n(said, gold, 2).f1,
    "ROUGE-L": lambda said, gold: rouge_l(said, gold).f1,
}
DIALOGUE = "Summarize_this_dialogue_"
"""The template of samsum that is asked."""
BEFORE_DIALOGUE = "Summarize this dialogue: "


class Reader(NamedTuple):
    """A language model that is asked; make it once, so that all its parameters share its programs."""

    tokenizer: Tokenizer
    write: Callable[[Params, Sequence[str], bool], list[str]]
    """`(params, prompts, marked) -> texts`, short ones; `marked` prompts spell special tokens."""
    write_long: Callable[[Params, Sequence[str], bool], list[str]]
    score: Callable[..., Any]
    """Of `evaluate.make_option_scorer`."""


def make_reader_of_instructions(
    lm: LanguageModel,
    tokenizer: Tokenizer,
    stop_tokens: Sequence[int],
    *,
    short: int = 12,
    long: int = 48,
    batch_size: int = 32,
) -> Reader:
    """Build what asks a model.

    Args:
      lm: the language model.
      tokenizer: its own.
      stop_tokens: each ends a text.
      short: the most tokens of a closed answer.
      long: of a solution or a summary.
      batch_size: prompts at a time.
    """

    def make_writer(length: int) -> Callable[[Params, Sequence[str], bool], list[str]]:
        write = make_text_writer(lm, tokenizer, response_length=length, stop_tokens=stop_tokens, piece=4)

        def write_all(params: Params, prompts: Sequence[str], marked: bool = False) -> list[str]:
            ids = tokenizer.encode_batch(prompts, special=not marked, marked=marked)
            order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
            found: dict[int, str] = {}
            for at in range(0, len(order), batch_size):
                part = order[at : at + batch_size]
                filled = part + part[:1] * (batch_size - len(part))  # one program for all batches
                texts = write(params, [ids[i] for i in filled], jax.random.key(0))
                found |= dict(zip(part, texts, strict=False))
            return [found[i] for i in range(len(ids))]

        return write_all

    scorer = make_option_scorer(lm, batch_size=batch_size)
    return Reader(tokenizer, make_writer(short), make_writer(long), scorer)


def as_chat(tokenizer: Tokenizer, prompt: str) -> str:
    """Return an instruction as a user's turn in the model's chat template."""
    if tokenizer.chat_template is None:
        raise ValueError("this tokenizer has no chat template; ask a model that has one")
    turn = [{"role": "user", "content": prompt.strip()}]
    return tokenizer.chat_template.render(turn, add_generation_prompt=True)


def read_closed(text: str) -> str:
    """Return the first line that is written, normalised; empty where nothing is."""
    lines = text.strip().splitlines()
    return normalise(lines[0]) if lines else ""


def find_named(options: Sequence[str], text: str) -> int | None:
    """Return the place of the allowed answer that a text names first, as whole words, or None.

    Case is ignored but for single letters; of answers that begin at one place the longest is named.
    """
    texts = [option if len(option) == 1 else option.casefold() for option in options]
    matches = []
    for i, option in enumerate(texts):
        where = text if len(option) == 1 else text.casefold()
        if found := re.search(rf"(?<!\w){re.escape(option)}(?!\w)", where):
            matches.append((found.start(), -len(option), i))
    return min(matches)[2] if matches else None


def judge(question: Question, text: str) -> dict[str, int]:
    """Return 1 or 0: has a text an answer's `format`, is it `right`, is the right one `named` first?"""
    said, allowed = read_closed(text), [normalise(option) for option in question.options]
    return {
        "format": int(said in allowed),
        "right": int(said == allowed[question.answer]),
        "named": int(find_named(question.options, text) == question.answer),
    }


def ask_closed(
    reader: Reader, params: Params, questions: Sequence[Question], chat: bool = False
) -> dict[str, list[Any]]:
    """Ask closed questions.

    Returns:
      One value a question: `said`, the first line as read; what `judge` returns; and `ranked`, whether the
      right answer is the likeliest of those allowed, which no format can spoil.
    """
    prompts = [as_chat(reader.tokenizer, q.prompt) if chat else q.prompt for q in questions]
    texts = reader.write(params, prompts, chat)
    judged = [judge(question, text) for question, text in zip(questions, texts, strict=True)]
    choices = [
        encode_choices(reader.tokenizer, prompt, question.options, marked=chat)
        for prompt, question in zip(prompts, questions, strict=True)
    ]
    scores = reader.score(params, choices)
    likeliest = [int(np.argmax(s.log_prob)) == q.answer for s, q in zip(scores, questions, strict=True)]
    return {
        "said": [read_closed(text) for text in texts],
        **{measure: [row[measure] for row in judged] for measure in ("format", "right", "named")},
        "ranked": [int(right) for right in likeliest],
    }


def read_letters(text: str) -> list[str]:
    """Return each (A), (B) or (C) that a text says up to its next question, in order."""
    return re.findall(r"\([ABC]\)", re.split(r"\n\s*Q:", text)[0])


def ask_pronouns(
    reader: Reader, params: Params, task: Task, items: Sequence[Item], room: int, chat: bool = False
) -> dict[str, Any]:
    """Ask whom pronouns refer to, plainly and behind "Let's think step by step." (E5).

    Returns:
      Under "plain" and "step by step", one value an item: `said`, the text; `names`, whether it says an
      option's letter; `format`, whether it says that of one option alone; `right`, whether the letter is the
      right one, the first of a plain answer, the last of a solution. And `ranked`, whether the right option
      is the likeliest.
    """
    found: dict[str, Any] = {}
    for name, thoughts in {"plain": False, "step by step": True}.items():
        how = {"room": room, "thoughts": thoughts, "chat": chat}
        prompts = make_prompts(task, items, [], reader.tokenizer, **how).prompts
        texts = reader.write_long(params, [prompt.text for prompt in prompts], chat)
        letters = [read_letters(text) for text in texts]
        taken = [row[-1 if thoughts else 0] if row else None for row in letters]
        right = [letter == item.options[item.answer] for letter, item in zip(taken, items, strict=True)]
        found[name] = {
            "said": texts,
            "names": [int(len(row) > 0) for row in letters],
            "format": [int(len(set(row)) == 1) for row in letters],
            "right": [int(hit) for hit in right],
        }
        if not thoughts:
            scores = reader.score(params, [prompt.tokens for prompt in prompts])
            best = [int(np.argmax(score.log_prob)) for score in scores]
            found["ranked"] = [int(i == item.answer) for i, item in zip(best, items, strict=True)]
    return found


def choose_dialogues(tokenizer: Tokenizer, rows: Sequence[Row], count: int, length: int) -> list[Row]:
    """Return `count` dialogues to sum up whose prompts have at most `length` tokens."""
    own = [row for row in rows if (row.set, row.template) == ("samsum", DIALOGUE)]
    sizes = map(len, tokenizer.encode_batch([row.prompt for row in own]))
    fitting = [row for row, size in zip(own, sizes, strict=True) if size <= length]
    order = np.random.default_rng(0).permutation(len(fitting))[:count]
    return [fitting[i] for i in sorted(order)]


def first_utterance(row: Row) -> str:
    """Return a dialogue's first line, the baseline of a summary."""
    return row.prompt.removeprefix(BEFORE_DIALOGUE).strip().splitlines()[0].strip()


def sum_up(reader: Reader, params: Params, rows: Sequence[Row], chat: bool = False) -> list[str]:
    """Return what a model writes to sum up dialogues, up to the first empty line."""
    prompts = [as_chat(reader.tokenizer, row.prompt) if chat else row.prompt for row in rows]
    texts = reader.write_long(params, prompts, chat)
    return [re.split(r"\n\s*\n", text.strip())[0].strip() for text in texts]


def rate_summaries(texts: Sequence[str], rows: Sequence[Row]) -> dict[str, list[float]]:
    """Return each measure's F1 of summaries against the human ones."""
    return {
        name: [rate(text, row.completion) for text, row in zip(texts, rows, strict=True)]
        for name, rate in ROUGE.items()
    }


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("instruction_tuning")
