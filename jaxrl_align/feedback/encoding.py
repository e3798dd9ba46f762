"""Rows of feedback as arrays of tokens: each prompt once, beside the completions that were judged.

No token reaches over the border between a prompt and a completion (`Tokenizer.encode_continuations`): the
prompt's tokens are those that a policy would see, whatever is answered. A prompt that is too long loses its
beginning (a BOS included); a completion is never cut. Prompts are padded on the left and completions on the
right, as in generation.

A row with a list of messages is written by the tokenizer's chat template, and a text in it is one turn: the
user's as a prompt, the assistant's as a completion. Completions end in a stop token, as those of a policy
do: what a template writes behind the last one, often a line break, is left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_align.data.tokens.padding import left_pad, right_pad
from jaxrl_align.data.tokens.tokenizers import Tokenizer, until_stop
from jaxrl_align.feedback.fields import Messages, Text
from jaxrl_align.feedback.rows import (
    Comparison,
    Correction,
    Feedback,
    Label,
    Ranking,
    Rating,
    Row,
)
from jaxrl_align.types import Comparisons, PaddedTokens, Rankings, Ratings

Encoded = tuple[list[int], list[list[int]]]
"""Token ids of a prompt, and of each of its completions."""


class Lengths(NamedTuple):
    """Widths that rows are padded to, in tokens."""

    prompt: int
    completion: int


def encode_comparisons(
    tokenizer: Tokenizer,
    rows: Sequence[Comparison],
    *,
    prompt_length: int,
    completion_length: int,
    **variables: Any,
) -> Comparisons:
    """Return comparisons as tokens, prompts [N, P] and completions [N, C].

    Args:
      tokenizer: has a stop token, or a chat template where rows hold messages.
      rows: N; of corrections take `compare_correction`.
      prompt_length: P, at least 1.
      completion_length: C, at least 1, the stop token included.
      variables: of the chat template; see `ChatTemplate.render_spans`. A row's own tools go first.

    Raises:
      ImportError: messages need `jinja2`.
      ValueError: with file and line, for a completion that C would cut, a prompt or completion without
        tokens, or a row that the tokenizer or its template refuses; for no rows or those of another kind;
        `choose_fitting` leaves such rows out.
    """
    lengths = Lengths(prompt_length, completion_length)
    encoded = _encode_rows(tokenizer, rows, lengths, (Comparison,), variables)
    chosen, rejected = (_pad_completions(tokenizer, [c[i] for _, c in encoded], lengths) for i in (0, 1))
    margin: Any = np.array([row.margin for row in rows], np.float32)
    return Comparisons(_pad_prompts(tokenizer, encoded, lengths), chosen, rejected, margin)


def encode_ratings(
    tokenizer: Tokenizer,
    rows: Sequence[Rating | Label],
    *,
    prompt_length: int,
    completion_length: int,
    **variables: Any,
) -> Ratings:
    """Return prompts with one completion each, and its score, or 1 for a good label and 0 for a bad one.

    Args:
      tokenizer: as `encode_comparisons`'.
      rows: N.
      prompt_length: likewise.
      completion_length: likewise.
      variables: likewise.

    Raises:
      ImportError, ValueError: as `encode_comparisons`.
    """
    lengths = Lengths(prompt_length, completion_length)
    encoded = _encode_rows(tokenizer, rows, lengths, (Rating, Label), variables)
    completion = _pad_completions(tokenizer, [c for _, (c,) in encoded], lengths)
    said = [row.score if isinstance(row, Rating) else row.label for row in rows]
    value: Any = np.array(said, np.float32)
    return Ratings(_pad_prompts(tokenizer, encoded, lengths), completion, value)


def encode_rankings(
    tokenizer: Tokenizer,
    rows: Sequence[Ranking],
    *,
    prompt_length: int,
    completion_length: int,
    **variables: Any,
) -> Rankings:
    """Return rankings as tokens, prompts [N, P] and completions [N, K, C], K the most of a row, best first.

    `losses.all_pairs` and `losses.plackett_luce` take the scores of a row with its `ranks` and `mask`.

    Args:
      tokenizer: as `encode_comparisons`'.
      rows: N.
      prompt_length: likewise.
      completion_length: likewise.
      variables: likewise.

    Raises:
      ImportError, ValueError: as `encode_comparisons`.
    """
    lengths = Lengths(prompt_length, completion_length)
    encoded = _encode_rows(tokenizer, rows, lengths, (Ranking,), variables)
    width = max(len(completions) for _, completions in encoded)
    # Padding repeats a real one: without any token it would have no place to read a score at.
    flat = [c for _, row in encoded for c in [*row, *[row[0]] * (width - len(row))]]
    padded = _pad_completions(tokenizer, flat, lengths)
    completions = PaddedTokens(*(leaf.reshape(len(rows), width, -1) for leaf in padded))
    ranks = np.full((len(rows), width), width + 1, np.int32)
    mask = np.zeros((len(rows), width), np.float32)
    for i, row in enumerate(rows):
        ranks[i, : len(row.ranks)] = sorted(row.ranks)
        mask[i, : len(row.ranks)] = 1.0
    prompts = _pad_prompts(tokenizer, encoded, lengths)
    return Rankings(prompts, completions, ranks, mask)  # type: ignore[arg-type]


def choose_fitting(
    tokenizer: Tokenizer,
    rows: Iterable[Row],
    *,
    prompt_length: int,
    completion_length: int,
    **variables: Any,
) -> Feedback:
    """Leave out the rows that `encode_comparisons` and the like would refuse, and list them.

    Args:
      tokenizer: as `encode_comparisons`'.
      rows: of any kind.
      prompt_length: likewise.
      completion_length: likewise.
      variables: likewise.

    Returns:
      The rows that fit, and a message for each other one.

    Raises:
      ImportError: messages need `jinja2`.
      ValueError: if no row fits.
    """
    lengths = _check_lengths(Lengths(prompt_length, completion_length))
    kept: list[Row] = []
    skipped: list[str] = []
    for i, row in enumerate(rows):
        try:
            _encode_row(tokenizer, row, lengths, i, variables)
            kept.append(row)
        except ValueError as error:
            skipped.append(str(error))
    if not kept:
        first = f"; first {skipped[0][:200]}" if skipped else ""
        raise ValueError(
            f"a row must fit completion_length={completion_length}; got none of {len(skipped)}{first}"
        )
    return Feedback(kept, skipped)


def measure_rows(tokenizer: Tokenizer, rows: Iterable[Row], **variables: Any) -> tuple[np.ndarray, list[str]]:
    """Return each row's tokens, of its prompt and of its longest completion, to choose lengths by.

    Args:
      tokenizer: as `encode_comparisons`'.
      rows: N, of any kind.
      variables: likewise.

    Returns:
      [N, 2] int, 0 for a row that the encoders would refuse whatever the lengths; and a message for each of
      those.

    Raises:
      ImportError: messages need `jinja2`.
    """
    endless = Lengths(2**31 - 1, 2**31 - 1)
    found: list[tuple[int, int]] = []
    refused: list[str] = []
    for i, row in enumerate(rows):
        try:
            prompt, completions = _encode_row(tokenizer, row, endless, i, variables)
            found.append((len(prompt), max(map(len, completions))))
        except ValueError as error:
            found.append((0, 0))
            refused.append(str(error))
    return np.array(found, np.int64).reshape(-1, 2), refused


def _check_lengths(lengths: Lengths) -> Lengths:
    for name, length in zip(("prompt_length", "completion_length"), lengths, strict=True):
        if not (isinstance(length, int | np.integer) and length >= 1):
            raise ValueError(f"{name} must be at least 1 token; got {length!r}")
    return lengths


def _encode_rows(
    tokenizer: Tokenizer, rows: Sequence[Any], lengths: Lengths, kinds: tuple[type, ...], variables: Any
) -> list[Encoded]:
    _check_lengths(lengths)
    if not rows:
        raise ValueError("rows must be at least one; got none; does the file hold this kind of feedback?")
    for row in rows:
        if not isinstance(row, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"rows must be {names}; got {type(row).__name__}; each kind has its own encoder")
    return [_encode_row(tokenizer, row, lengths, i, variables) for i, row in enumerate(rows)]


def _encode_row(tokenizer: Tokenizer, row: Row, lengths: Lengths, index: int, variables: Any) -> Encoded:
    """Return the prompt's last tokens that fit, and the completions."""
    try:
        own = own_variables(row, variables)
        prompt, completions = split_row(tokenizer, row.prompt, _completions(row), own)
        longest = max(map(len, completions))
        if not prompt or not all(completions):
            raise ValueError("prompt and completion must have a token each; got none of one; remove the row")
        if longest > lengths.completion:
            raise ValueError(
                f"a completion of {longest} tokens must fit completion_length={lengths.completion}; allow "
                "more or leave the row out, choose_fitting"
            )
    except ValueError as error:
        raise ValueError(f"{row.source or f'row {index}'}: {error}") from error
    return prompt[-lengths.prompt :], completions


def _completions(row: Row) -> list[Text]:
    """Return what a row judges, the best first."""
    if isinstance(row, Comparison):
        return [row.chosen, row.rejected]
    if isinstance(row, Ranking):
        order = np.argsort(row.ranks, kind="stable")
        return [row.completions[i] for i in order]
    return [row.completion, row.correction] if isinstance(row, Correction) else [row.completion]


def own_variables(row: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of a chat template for one row: its own tools, where it has any, go first."""
    tools = getattr(row, "tools", None)
    return dict(variables) if tools is None else {**variables, "tools": tools}


def split_row(
    tokenizer: Tokenizer, prompt: Text, completions: Sequence[Text], variables: Any
) -> tuple[list[int], list[list[int]]]:
    """Return the ids of a prompt and of each completion, each ending in the stop token."""
    texts = [text for text in completions if isinstance(text, str)]
    if not isinstance(prompt, str) or len(texts) < len(completions):
        asked = _as_messages(prompt, "user")
        pairs = [
            tokenizer.encode_reply(asked, _as_messages(text, "assistant"), **variables)
            for text in completions
        ]
        return pairs[0][0], [until_stop(reply, tokenizer.stop_tokens) for _, reply in pairs]
    if tokenizer.stop_token is None:
        raise ValueError("the tokenizer must have a stop token; load_tokenizer(folder, stop_token=...)")
    ids, answers = tokenizer.encode_continuations(prompt, texts)
    return ids, [answer + [tokenizer.stop_token] for answer in answers]


def as_one_form(prompt: Text, completion: Text) -> tuple[Text, Text]:
    """Return both as texts, or both as messages where one is: a text in a conversation is one turn."""
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, completion
    return _as_messages(prompt, "user"), _as_messages(completion, "assistant")


def _as_messages(text: Text, role: str) -> Messages:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _pad_prompts(tokenizer: Tokenizer, encoded: Sequence[Encoded], lengths: Lengths) -> PaddedTokens:
    return left_pad([prompt for prompt, _ in encoded], lengths.prompt, tokenizer.pad_token or 0)


def _pad_completions(tokenizer: Tokenizer, rows: Sequence[list[int]], lengths: Lengths) -> PaddedTokens:
    return right_pad(rows, lengths.completion, tokenizer.pad_token or 0)
