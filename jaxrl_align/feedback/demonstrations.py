"""Rows that judge nothing: demonstrations to imitate and prompts to answer, read from JSON lines.

| rows | fields | what is imitated |
|---|---|---|
| document | `text` | all of it |
| dialogue | `messages` | the assistant's turns |
| demonstration | `prompt`, `completion` | the completion |
| question | `prompt`, or `messages` up to the assistant's last turn; any further columns | nothing |

A text may be a list of messages `{"role", "content"}`, as in rows of feedback; what is imitated ends in the
stop token. All but documents may have `tools`, a list of JSON schemas or its JSON text, for the chat
template of messages.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl_align.data.tokens.padding import left_pad, right_pad
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.feedback.encoding import own_variables, split_row
from jaxrl_align.feedback.fields import (
    SKIP,
    Messages,
    Text,
    parse_completion,
    parse_rows,
    parse_text,
    parse_tools,
)
from jaxrl_align.feedback.rows import Feedback
from jaxrl_align.types import PaddedTokens, TokenBatch


class Document(NamedTuple):
    """A text that is imitated from its first token on."""

    text: str
    source: str = ""
    """`file:line` of the row."""


class Dialogue(NamedTuple):
    """A conversation, of which the assistant's turns are imitated."""

    messages: Messages
    source: str = ""
    tools: list[Any] | None = None
    """Offered to the assistant by the chat template."""


class Demonstration(NamedTuple):
    """A prompt, and the completion that is imitated."""

    prompt: Text
    completion: Text
    source: str = ""
    tools: list[Any] | None = None
    """As `Dialogue`'s."""


class Question(NamedTuple):
    """A prompt to be answered, and what else its row holds, such as a reference answer."""

    prompt: Text
    columns: Mapping[str, Any] = {}
    source: str = ""
    tools: list[Any] | None = None
    """As `Dialogue`'s."""


_MARKED = re.compile(r"\{%[-+]?\s*generation\b")
Shown = tuple[list[int], list[bool]]
"""Token ids of a row, and which of them are imitated."""


def read_demonstrations(path: str | Path, *, skip_bad_rows: bool = False) -> Feedback:
    """Read a file of documents, dialogues or demonstrations, one JSON object a line; kinds may be mixed.

    Args:
      path: a JSONL file, compressed if its name ends in `.gz`.
      skip_bad_rows: leave bad rows out and list them, instead of raising an error for the first one.

    Returns:
      The rows, in the file's order, each with its `source`; and the skipped ones.

    Raises:
      ValueError: with file and line, for a row of none of the kinds, a text without words, a dialogue in
        which the assistant says nothing; and always for a file that is missing, truncated or without a good
        row.
    """
    return _read(Path(path), _parse_demonstration, skip_bad_rows)


def read_prompts(path: str | Path, *, skip_bad_rows: bool = False) -> Feedback:
    """Read a file of prompts to be answered, one JSON object a line.

    Args:
      path: as `read_demonstrations`'.
      skip_bad_rows: likewise.

    Returns:
      `Question` rows, with the further fields of each as its columns.

    Raises:
      ValueError: as `read_demonstrations`, for a row without a prompt.
    """
    return _read(Path(path), _parse_question, skip_bad_rows)


def _read(path: Path, parse: Callable[[dict[str, Any], str], Any], skip_bad_rows: bool) -> Feedback:
    rows, skipped = parse_rows(path, parse, skip_bad_rows)
    if not rows:
        first = f"; first {skipped[0][:200]}" if skipped else "; the file is empty"
        raise ValueError(f"{path} must hold a good row; all {len(skipped)} rows are bad{first}")
    return Feedback(rows, skipped)


def _parse_demonstration(fields: dict[str, Any], source: str) -> Document | Dialogue | Demonstration:
    if {"prompt", "completion"} <= fields.keys():
        prompt, completion = parse_text(fields, "prompt"), parse_completion(fields, "completion")
        return Demonstration(prompt, completion, source, parse_tools(fields))
    if "messages" in fields:
        messages = _parse_messages(fields)
        if not any(message["role"] == "assistant" for message in messages[1:]):
            raise ValueError(f"messages must hold an assistant's turn after another's; got none; {SKIP}")
        return Dialogue(messages, source, parse_tools(fields))
    if "text" in fields:
        text = parse_text(fields, "text")
        if not (isinstance(text, str) and text.strip()):
            raise ValueError(f"text must hold words; got none; {SKIP}")
        return Document(text, source)
    raise ValueError(
        f"a row must have text, messages, or prompt and completion; got {', '.join(sorted(fields))[:80]}"
    )


def _parse_messages(fields: dict[str, Any]) -> Messages:
    messages = parse_text(fields, "messages")
    if isinstance(messages, str):
        raise ValueError(f"messages must be a list of messages; got the text {messages[:40]!r}")
    return messages


def _parse_question(fields: dict[str, Any], source: str) -> Question:
    asked = "messages" if "prompt" not in fields and "messages" in fields else "prompt"
    prompt = _parse_messages(fields) if asked == "messages" else parse_text(fields, asked)
    if isinstance(prompt, list):
        ends = [i for i, message in enumerate(prompt) if message["role"] != "assistant"]
        prompt = prompt[: ends[-1] + 1] if ends else []
    if not prompt or isinstance(prompt, str) and not prompt.strip():
        raise ValueError(f"{asked} must ask something; got nothing; {SKIP}")
    columns = {name: x for name, x in fields.items() if name != asked}
    return Question(prompt, columns, source, parse_tools(fields))


def tokenise_demonstrations(
    tokenizer: Tokenizer, rows: Sequence[Document | Dialogue | Demonstration], **variables: Any
) -> list[Shown]:
    """Return each row's token ids, and which of them are imitated.

    Where a chat template has `{% generation %}` blocks, these say what the assistant says; where it has none,
    the turns that follow its generation prompt. A turn that the template writes otherwise once the
    conversation has gone on, for example without its thoughts, is read but not imitated.

    Args:
      tokenizer: has a stop token, or a chat template where rows hold messages.
      rows: N.
      variables: of the chat template; see `ChatTemplate.render_spans`. A row's own tools go first.

    Raises:
      ImportError: messages need `jinja2`.
      ValueError: with file and line, for a row that the tokenizer or its template refuses, or of which no
        token is imitated.
    """
    return [_tokenise(tokenizer, row, i, variables) for i, row in enumerate(rows)]


def _tokenise(tokenizer: Tokenizer, row: Any, index: int, variables: Any) -> Shown:
    variables = own_variables(row, variables)
    try:
        if isinstance(row, Dialogue):
            ids, said = _tokenise_dialogue(tokenizer, row.messages, variables)
        elif isinstance(row, Demonstration):
            prompt, (completion,) = split_row(tokenizer, row.prompt, [row.completion], variables)
            ids, said = prompt + completion, [False] * len(prompt) + [True] * len(completion)
        else:
            stop = tokenizer.stop_token
            ids = tokenizer.encode(row.text)
            ids += [] if stop is None or ids[-1:] == [stop] else [stop]
            said = [True] * len(ids)
        if not any(said[1:]):
            raise ValueError("a token must follow another to be imitated; got none; remove the row")
    except ValueError as error:
        raise ValueError(f"{row.source or f'row {index}'}: {error}") from error
    return ids, said


def _tokenise_dialogue(tokenizer: Tokenizer, messages: Messages, variables: Any) -> Shown:
    template = tokenizer.chat_template
    if template is not None and _MARKED.search(template.source):
        return tokenizer.encode_demonstration(messages, **variables)
    return tokenizer.encode_turns(messages, **variables)


def pad_demonstrations(rows: Sequence[Shown], length: int) -> TokenBatch:
    """Return rows of `tokenise_demonstrations` as a `TokenBatch` [N, length] of NumPy arrays.

    Raises:
      ValueError: for a row of more than `length` tokens.
    """
    tokens, real = right_pad([ids for ids, _ in rows], length, 0)
    said, _ = right_pad([said for _, said in rows], length, 0)
    return TokenBatch(tokens, real, np.asarray(said, np.float32))  # type: ignore[arg-type]


def tokenise_prompts(tokenizer: Tokenizer, rows: Sequence[Question], **variables: Any) -> list[list[int]]:
    """Return the token ids of each prompt, up to where the assistant's turn begins where it is a dialogue.

    Args:
      tokenizer: has a chat template where prompts are dialogues.
      rows: N.
      variables: of the chat template. A row's own tools go first.

    Raises:
      ImportError: messages need `jinja2`.
      ValueError: with file and line, for a row that the tokenizer or its template refuses, or without tokens.
    """
    found = []
    for i, row in enumerate(rows):
        try:
            if isinstance(row.prompt, str):
                ids = tokenizer.encode(row.prompt)
            else:
                own = own_variables(row, variables) | {"add_generation_prompt": True}
                ids = tokenizer.encode_chat(row.prompt, **own)
            if not ids:
                raise ValueError("a prompt must have a token; got none; remove the row")
        except ValueError as error:
            raise ValueError(f"{row.source or f'row {i}'}: {error}") from error
        found.append(ids)
    return found


def pad_prompts(rows: Sequence[Sequence[int]], length: int, pad_token: int) -> PaddedTokens:
    """Return prompts [N, length], left-padded; of a longer one the last `length` tokens, as in feedback."""
    return left_pad([ids[-length:] for ids in rows], length, pad_token)
