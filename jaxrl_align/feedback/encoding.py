"""Rows of feedback as arrays of tokens, each side with the mask of its completion.

A prompt and a completion are encoded apart and then joined, so that no token reaches over the border: the
prompt's tokens are those that a policy would see, whatever is answered. A prompt that is too long loses its
beginning (a BOS included), the same tokens before each of its completions; a completion is never cut.

A row with a list of messages is written by the tokenizer's chat template, and a text in it is one turn: the
user's as a prompt, the assistant's as a completion. Completions end in the stop token, as those of a policy
do: what a template writes behind its last one, often a line break, is left out.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxrl_align.data.tokenizers import Tokenizer, right_pad
from jaxrl_align.feedback.fields import Messages, Text
from jaxrl_align.feedback.rows import (
    Comment,
    Comparison,
    Correction,
    Feedback,
    Label,
    Ranking,
    Rating,
    Row,
)
from jaxrl_align.types import Answers, Comparisons, Rankings

Side = tuple[list[int], list[int]]
"""Token ids of a query with its response, and 1 for each one of the response."""


def encode_comparisons(
    tokenizer: Tokenizer, rows: Sequence[Comparison], *, length: int, **variables: Any
) -> Comparisons:
    """Return comparisons as tokens [N, length], right-padded.

    Args:
      tokenizer: has a stop token, or a chat template where rows hold messages.
      rows: N; of corrections take `compare_correction`.
      length: of every sequence in tokens, at least 2.
      variables: of the chat template; see `ChatTemplate.render_spans`.

    Raises:
      ImportError: messages need `jinja2`.
      ValueError: with file and line, for a completion that the length would cut or that leaves no room for a
        token of its prompt, one without tokens, or a row that the tokenizer or its template refuses; for no
        rows or those of another kind; `choose_fitting` leaves such rows out.
    """
    sides = _encode_rows(tokenizer, rows, length, (Comparison,), variables)
    chosen, rejected = zip(*sides, strict=True)
    return Comparisons(_stack(tokenizer, chosen, length), _stack(tokenizer, rejected, length))


def encode_answers(
    tokenizer: Tokenizer, rows: Sequence[Rating | Label | Comment], *, length: int, **variables: Any
) -> Answers:
    """Return prompts with one completion each as tokens [N, length], right-padded.

    Args:
      tokenizer: as `encode_comparisons`'.
      rows: N.
      length: likewise.
      variables: likewise.

    Raises:
      ImportError, ValueError: as `encode_comparisons`.
    """
    sides = _encode_rows(tokenizer, rows, length, (Rating, Label, Comment), variables)
    return _stack(tokenizer, [side for (side,) in sides], length)


def encode_rankings(
    tokenizer: Tokenizer, rows: Sequence[Ranking], *, length: int, **variables: Any
) -> Rankings:
    """Return rankings as tokens [N, K, length], best first, K the most completions of a row.

    `losses.all_pairs` takes `ranks` and `mask`; `losses.plackett_luce` takes `mask` and knows no ties: those
    keep the order of the file.

    Args:
      tokenizer: as `encode_comparisons`'.
      rows: N.
      length: likewise.
      variables: likewise.

    Raises:
      ImportError, ValueError: as `encode_comparisons`.
    """
    sides = _encode_rows(tokenizer, rows, length, (Ranking,), variables)
    width = max(map(len, sides))
    # Padding repeats a real answer: one without any token would have no place to read a score at.
    flat = [side for row in sides for side in [*row, *[row[0]] * (width - len(row))]]
    answers = Answers(*(leaf.reshape(len(rows), width, length) for leaf in _stack(tokenizer, flat, length)))
    ranks = np.full((len(rows), width), width + 1, np.int32)
    mask = np.zeros((len(rows), width), np.float32)
    for i, row in enumerate(rows):
        ranks[i, : len(row.ranks)] = sorted(row.ranks)
        mask[i, : len(row.ranks)] = 1.0
    return Rankings(answers, ranks, mask)  # type: ignore[arg-type]


def choose_fitting(tokenizer: Tokenizer, rows: Iterable[Row], *, length: int, **variables: Any) -> Feedback:
    """Leave out the rows that `encode_comparisons` and the like would refuse, and list them.

    Args:
      tokenizer: as `encode_comparisons`'.
      rows: of any kind.
      length: likewise.
      variables: likewise.

    Returns:
      The rows that fit, and a message for each other one.

    Raises:
      ImportError: messages need `jinja2`.
      ValueError: if no row fits.
    """
    _check_length(length)
    kept: list[Row] = []
    skipped: list[str] = []
    for i, row in enumerate(rows):
        try:
            _encode_row(tokenizer, row, length, i, variables)
            kept.append(row)
        except ValueError as error:
            skipped.append(str(error))
    if not kept:
        first = f"; first {skipped[0][:200]}" if skipped else ""
        raise ValueError(f"a row must fit length={length}; got none of {len(skipped)}{first}")
    return Feedback(kept, skipped)


def _check_length(length: int) -> None:
    if not (isinstance(length, int | np.integer) and length >= 2):
        raise ValueError(f"length must be at least 2, a token of each prompt and completion; got {length!r}")


def _encode_rows(
    tokenizer: Tokenizer, rows: Sequence[Any], length: int, kinds: tuple[type, ...], variables: Any
) -> list[list[Side]]:
    _check_length(length)
    if not rows:
        raise ValueError("rows must be at least one; got none; does the file hold this kind of feedback?")
    for row in rows:
        if not isinstance(row, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"rows must be {names}; got {type(row).__name__}; each kind has its own encoder")
    return [_encode_row(tokenizer, row, length, i, variables) for i, row in enumerate(rows)]


def _encode_row(tokenizer: Tokenizer, row: Row, length: int, index: int, variables: Any) -> list[Side]:
    """Return the sides of a row, each at most `length` long."""
    try:
        prompt, completions = _split(tokenizer, row.prompt, _completions(row), variables)
        longest = max(map(len, completions))
        if not prompt or not all(completions):
            raise ValueError("prompt and completion must have a token each; got none of one; remove the row")
        if longest >= length:
            raise ValueError(
                f"a completion of {longest} tokens and one of its prompt must fit length={length}; allow "
                "more or leave the row out, choose_fitting"
            )
    except ValueError as error:
        raise ValueError(f"{row.source or f'row {index}'}: {error}") from error
    prompt = prompt[-(length - longest) :]
    return [(prompt + ids, [0] * len(prompt) + [1] * len(ids)) for ids in completions]


def _completions(row: Row) -> list[Text]:
    """Return what a row judges, the best first."""
    if isinstance(row, Comparison):
        return [row.chosen, row.rejected]
    if isinstance(row, Ranking):
        order = np.argsort(row.ranks, kind="stable")
        return [row.completions[i] for i in order]
    return [row.completion, row.correction] if isinstance(row, Correction) else [row.completion]


def _split(
    tokenizer: Tokenizer, prompt: Text, completions: Sequence[Text], variables: Any
) -> tuple[list[int], list[list[int]]]:
    """Return the ids of a prompt and of each completion."""
    texts = [text for text in completions if isinstance(text, str)]
    if not isinstance(prompt, str) or len(texts) < len(completions):
        asked = _as_messages(prompt, "user")
        pairs = [
            tokenizer.encode_reply(asked, _as_messages(text, "assistant"), **variables)
            for text in completions
        ]
        return pairs[0][0], [_end_at_stop(reply, tokenizer.stop_token) for _, reply in pairs]
    if tokenizer.stop_token is None:
        raise ValueError("the tokenizer must have a stop token; load_tokenizer(folder, stop_token=...)")
    stop = [tokenizer.stop_token]
    return tokenizer.encode(prompt), [ids + stop for ids in tokenizer.encode_batch(texts, special=False)]


def _end_at_stop(ids: list[int], stop_token: int | None) -> list[int]:
    """Return tokens up to the last stop token, or all where there is none."""
    behind = ids[::-1].index(stop_token) if stop_token in ids else 0
    return ids[: len(ids) - behind]


def _as_messages(text: Text, role: str) -> Messages:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _stack(tokenizer: Tokenizer, sides: Sequence[Side], length: int) -> Answers:
    pad_token = 0 if tokenizer.pad_token is None else tokenizer.pad_token
    tokens, real = right_pad([ids for ids, _ in sides], length, pad_token)
    response, _ = right_pad([said for _, said in sides], length, 0)
    return Answers(tokens, real, response.astype(np.float32))  # type: ignore[attr-defined]
