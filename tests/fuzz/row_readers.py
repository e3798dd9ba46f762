"""Readers of rows: feedback of six kinds, demonstrations, prompts, crowds' votes and arguments."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl_align import feedback
from jaxrl_align.cli.datasets import Divided, divide_rows, encode_feedback, encode_questions, encode_sft
from jaxrl_align.cli.options import DataOptions, LengthOptions
from jaxrl_align.cli.scoring import read_answers
from jaxrl_align.data.tokens.chat import ChatTemplate
from jaxrl_align.data.tokens.vocabularies import byte_tokenizer
from jaxrl_align.feedback.fields import Messages
from tests.fuzz.data_readers import bomb
from tests.fuzz.readers import Reader

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
CONTEXT = 512
CHAT: Messages = [{"role": "user", "content": "2 + 2?"}]
TURNS: Messages = [*CHAT, {"role": "assistant", "content": "4"}]
BY = {"prompt": "Say hello.", "annotator": "ann"}
POST = {"subreddit": "x", "title": "A title", "post": "A long post."}
ROWS: dict[str, list[dict[str, Any]]] = {
    "comparison": [
        {**BY, "chosen": "Hello!", "rejected": "No.", "margin": 0.5},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
        {"prompt": CHAT, "chosen": TURNS[1:], "rejected": [{"role": "assistant", "content": "5"}]},
        {"info": POST, "summaries": [{"text": " a"}, {"text": " b"}], "choice": 1, "worker": "w"},
    ],
    "ranking": [{**BY, "completions": ["a", "b", "c"], "ranking": [1, 2, 2]}] * 2,
    "rating": [
        {**BY, "completion": "Hello", "score": 7},
        {"info": POST, "summary": {"text": " b", "axes": {"overall": 3}}, "worker": "w"},
    ],
    "text": [{**BY, "completion": "Hello", "text": "Nice, not too long."}] * 2,
    "correction": [{**BY, "completion": "Helo", "correction": "Hello"}] * 2,
    "label": [{**BY, "completion": "Hello", "label": True}, {**BY, "completion": "Bye", "label": 0}],
}
DEMONSTRATIONS = [
    {"text": "A whole document."},
    {"messages": TURNS},
    {"prompt": "Say hello.", "completion": " Hello."},
    {"prompt": CHAT, "completion": TURNS[1:]},
]
PROMPTS = [{"prompt": "Say hello.", "answer": 4}, {"messages": TURNS}, {"prompt": CHAT, "extra": {"a": [1]}}]


def _tokenizer() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = ChatTemplate(TEMPLATE, {"eos_token": "</s>"})
    return tokenizer


TOKENIZER = _tokenizer()


def _lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _bad_rows(found: Any) -> str | None:
    for row in found.rows:
        for name in row._fields:
            value = getattr(row, name)
            if name in ("score", "margin") and not np.isfinite(value):
                return f"{name} {value}"
            if name in ("prompt", "completion", "chosen", "rejected", "correction"):
                turns = [{"role": "x", "content": value}] if isinstance(value, str) else value
                for turn in turns:
                    if not isinstance(turn["role"], str):
                        return f"a role that is no text: {turn!r:.60}"
                    if not isinstance(turn.get("content"), str | list | None):
                        return f"content that is no text: {turn!r:.60}"
    return None


def _rows_reader(name: str, rows: list[Any], read: Callable[..., Any], encode: Any, packed: bool) -> Reader:
    """Return a reader of rows as `jaxrl-align` reads them: bad ones left out, some held out, as tokens."""
    file, data = "rows.jsonl.gz" if packed else "rows.jsonl", _lines(rows)
    pack = (lambda content: gzip.compress(content, mtime=0)) if packed else (lambda content: content)

    def read_all(folder: Path) -> Any:
        path = folder / file
        options = DataOptions(str(path), held_out="0.3" if len(data) > 300 else None, skip_bad_rows=True)
        try:
            encode(divide_rows(options, read, 0), options)
        except ValueError:
            read(path)
            raise
        return read(path)

    bad = [b"\xff\n", b"[" * 100_000, b'{"a":' * 5_000, b"1" * 5_000, b"null\n" * 50_000, b"{}\n" * 50_000]
    hostile = [{file: pack(one)} for one in bad]
    hostile += [{file: pack(data) + bomb(unit)} for unit in (b"\n", b"a", b'{"a": 1}\n') if packed]
    return Reader(
        name, lambda folder: (folder / file).write_bytes(pack(data)), read_all, _bad_rows, tuple(hostile)
    )


def _encode_judged(divided: Divided, options: DataOptions) -> Any:
    return encode_feedback(divided, TOKENIZER, options, LengthOptions(), CONTEXT)


def _encode_shown(divided: Divided, options: DataOptions) -> Any:
    return encode_sft(divided, TOKENIZER, options, None, CONTEXT)


def _encode_asked(divided: Divided, options: DataOptions) -> Any:
    return encode_questions(divided, TOKENIZER, options, None, CONTEXT, 0)


def _write_votes(folder: Path) -> None:
    (folder / "votes.csv").write_text("ann,one,0,0\nbob,one,1,0\nann,two,1,1\nbob,two,1,1\n")


def _read_votes(folder: Path) -> Any:
    votes, gold, names = feedback.read_votes(folder / "votes.csv")
    feedback.majority(votes, classes=2)
    return votes, gold, names


def _bad_votes(found: Any) -> str | None:
    votes, gold, names = found
    good = len(names) == votes.annotator.max() + 1 and votes.label.min() >= 0 and gold.min() >= 0
    return None if good and all(name.strip() for name in names) else "votes of nobody, or of no class"


def _write_arguments(folder: Path) -> None:
    (folder / "a.csv").write_text('#id\tlabel\ta1\ta2\nx_y\ta1\tYes "so.\tNo.\ny_z\ta2\tNo.\tMaybe\n')


READERS: tuple[Reader, ...] = (
    *(
        _rows_reader(
            f"feedback {kind}",
            rows,
            feedback.read_feedback,
            _encode_judged if kind != "text" else lambda *_: None,
            kind in ("rating", "label"),
        )
        for kind, rows in ROWS.items()
    ),
    _rows_reader("demonstrations", DEMONSTRATIONS, feedback.read_demonstrations, _encode_shown, True),
    _rows_reader("prompts", PROMPTS, feedback.read_prompts, _encode_asked, False),
    _rows_reader(
        "answers",
        ROWS["comparison"][:2] + ROWS["rating"][:1],
        lambda path, skip_bad_rows=False: feedback.Feedback(*read_answers(str(path), skip_bad_rows)),
        lambda *_: None,
        False,
    ),
    Reader(
        "votes",
        _write_votes,
        _read_votes,
        _bad_votes,
        hostile=tuple(
            {"votes.csv": data}
            for data in (
                b"\xff",
                b"a,b,1,1\n" + b'"' + b"x" * 200_000,
                b"a,b," + b"9" * 5_000 + b",1",
                b"a,b,9999999999999999999,1",
            )
        ),
    ),
    Reader(
        "arguments",
        _write_arguments,
        lambda folder: feedback.read_arguments(folder / "a.csv", "Debate:"),
        hostile=({"a.csv": b"\n"}, {"a.csv": b"\xff"}, {"a.csv": b"x\ta1\t" + b"y" * 200_000}),
    ),
)
