"""The command that scores answers by a reward model or a function."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl_align import evaluate
from jaxrl_align.align.host_rewards import choose_arguments
from jaxrl_align.cli.datasets import as_chat
from jaxrl_align.cli.judges import Judge, hint_form, load_judge, score_tokens
from jaxrl_align.cli.serve import write_rows
from jaxrl_align.feedback.encoding import as_one_form, own_variables, split_row
from jaxrl_align.feedback.fields import (
    Text,
    parse_completion,
    parse_rows,
    parse_text,
    parse_tools,
    split_dialogues,
)


@dataclass(frozen=True)
class ScoreRows:
    """Score answers by a reward model or a function of your own; of pairs, count those ordered rightly.

    Rows: {"prompt", "completion"}, or {"prompt", "chosen", "rejected"}.
    """

    reward: str
    """A reward model's folder, or module:function of the working directory,
    f(prompts, completions, **columns) -> one number for each."""
    data: str
    """A JSONL file, also .gz."""
    chat: bool = False
    """Prompts that are plain texts are the user's turn in the reward model's chat template; a function gets
    rows as they are."""
    skip_bad_rows: bool = False
    """Leave rows out that cannot be read, and list them, instead of ending in an error."""
    out: str | None = None
    """A JSONL file of the rows with their scores; None prints a summary alone."""
    mesh: str | None = None
    """Devices among which the reward model is divided: "model=4", "fsdp=4" or "auto"."""


class Answered(NamedTuple):
    """A prompt with one answer or, of a pair, the chosen and the rejected one."""

    prompt: Text
    answers: Sequence[Text]
    fields: Mapping[str, Any]
    """The row as it was read."""
    source: str
    tools: list[Any] | None
    """Offered to the assistant by the chat template."""


def run_score(options: ScoreRows, argv: Sequence[str]) -> None:
    """Score rows, write them, summarise."""
    judge = load_judge(options.reward)
    rows, skipped = read_answers(options.data, options.skip_bad_rows)
    scores = score_answers(judge, rows if judge.function else as_chat(rows, options.chat))
    if options.out is not None:
        write_rows(options.out, [with_scores(row, s) for row, s in zip(rows, scores, strict=True)])
    flat = np.concatenate(scores)
    left_out = f", {len(skipped):,} left out: {skipped[0]}" if skipped else ""
    print(f"{len(rows):,} rows{left_out}{hint_form(options.reward, options.chat)}")
    print(f"scores: mean {flat.mean():.4g}, deviation {flat.std():.4g}, {flat.min():.4g} to {flat.max():.4g}")
    if all(len(row.answers) == 2 for row in rows):
        margins = np.array([s[0] - s[1] for s in scores])
        lengths = np.array([[count_characters(text) for text in row.answers] for row in rows])
        print(evaluate.report_pairs(margins, lengths))


def count_characters(text: Text) -> int:
    """Return the characters of a text, or of what messages say."""
    if isinstance(text, str):
        return len(text)
    said = [message.get("content") or "" for message in text]
    parts = [part for content in said for part in ([content] if isinstance(content, str) else content)]
    return sum(len(str(part.get("text") or "" if isinstance(part, dict) else part)) for part in parts)


def read_answers(path: str, skip_bad_rows: bool) -> tuple[list[Answered], list[str]]:
    """Read the rows of a file, and a message for each that was left out.

    Raises:
      ValueError: with file and line, for a row that has no answer, unless it is skipped; for a file without a
        good one.
    """
    rows, skipped = parse_rows(Path(path), _parse_answered, skip_bad_rows)
    if not rows:
        raise ValueError(f"{path} must hold a good row; got {len(skipped)} bad ones")
    return rows, skipped


def _parse_answered(fields: dict[str, Any], source: str) -> Answered:
    if {"chosen", "rejected"} <= fields.keys():
        prompt, *answers = split_dialogues(fields)
    else:
        prompt, answers = parse_text(fields, "prompt"), [parse_completion(fields, "completion")]
    return Answered(prompt, answers, fields, source, parse_tools(fields))


def score_answers(judge: Judge, rows: Sequence[Answered]) -> list[np.ndarray]:
    """Return the scores of each row's answers."""
    pairs = [(row, text) for row in rows for text in row.answers]
    if judge.function is not None:
        flat = call_function(judge, pairs)
    else:
        assert judge.tokenizer is not None
        texts = []
        for row in rows:
            try:
                prompt, answers = split_row(judge.tokenizer, row.prompt, row.answers, own_variables(row, {}))
            except ValueError as error:
                raise ValueError(f"{row.source}: {error}") from error
            texts += [prompt + answer for answer in answers]
        flat = score_tokens(judge, texts)
    ends = np.cumsum([len(row.answers) for row in rows])
    return np.split(flat, ends[:-1])


def call_function(judge: Judge, pairs: Sequence[tuple[Answered, Text]]) -> np.ndarray:
    """Return what the user's function gives to prompts and completions, as `align.host_reward` calls it.

    Raises:
      ValueError: if it raises, or returns anything but one finite number for each.
    """
    assert judge.function is not None
    known = ("prompt", "completion", "chosen", "rejected")
    names = {name for row, _ in pairs for name in row.fields} - set(known)
    if taken := sorted(names & {"prompts", "completions"}):
        raise ValueError(
            f"fields of rows must be called neither prompts nor completions; got {taken[0]}, which reward "
            f"{judge.name!r} gets as what is scored; rename it"
        )
    columns = {name: [row.fields.get(name) for row, _ in pairs] for name in sorted(names)}
    asked, said = zip(*(as_one_form(row.prompt, text) for row, text in pairs), strict=True)
    given = {"prompts": list(asked), "completions": list(said)}
    try:
        returned = judge.function(**choose_arguments(judge.function, columns | given))
    except Exception as error:  # whatever the user's own lines raise
        raise ValueError(
            f"reward {judge.name!r} must not raise; got {type(error).__name__}: {error}; it is called as "
            "f(prompts=[...], completions=[...], **columns)"
        ) from error
    try:
        numbers = np.array(list(returned), np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"reward {judge.name!r} must return a list of one number for each of {len(pairs)} completions; "
            f"got {repr(returned)[:60]}"
        ) from error
    if numbers.shape != (len(pairs),) or not np.isfinite(numbers).all():
        bad = (
            ""
            if numbers.shape != (len(pairs),)
            else f", not finite at {pairs[_first_bad(numbers)][0].source}"
        )
        raise ValueError(
            f"reward {judge.name!r} must return one finite number for each of {len(pairs)} completions; got "
            f"{numbers.size}{bad}"
        )
    return numbers


def _first_bad(numbers: np.ndarray) -> int:
    return int(np.flatnonzero(~np.isfinite(numbers))[0])


def with_scores(row: Answered, scores: np.ndarray) -> dict[str, Any]:
    """Return a row with its score, or with those of both answers."""
    values = scores.tolist()
    if len(values) == 1:
        return {**row.fields, "score": values[0]}
    return {**row.fields, "chosen_score": values[0], "rejected_score": values[1]}
