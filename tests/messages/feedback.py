"""Bad files, rows and texts of human feedback."""

import gzip
import json
import tempfile
from pathlib import Path

from jaxrl_align import data, feedback

PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
RANKING = {"prompt": "p", "completions": ["a", "b", "c"], "ranking": [1, 2, 3]}
RATING = {"prompt": "p", "completion": "c", "score": 5}
COMMENT = {"prompt": "p", "completion": "c", "text": "too long"}
CORRECTION = {"prompt": "p", "completion": "c", "correction": "d"}
LABEL = {"prompt": "p", "completion": "c", "label": True}
POST = {"info": {"post": "p"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0}
AXES = {"info": {"post": "p"}, "summary": {"text": "a", "axes": {"overall": 3}}}
USER, BOT = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
PLACES = "must give each of the 3 completions its place, 1 for the best, equal places for ties"


def without(row, name):
    return {field: value for field, value in row.items() if field != name}


BAD_ROWS = {
    "no JSON": (PAIR, b'{"prompt": ', None, "must be JSON, one object a line; it is not"),
    "too deep": (PAIR, b"[" * 200_000, None, "must be JSON, one object a line; it is not"),
    "no UTF-8": (
        PAIR,
        b'{"a": "\xff"}',
        None,
        "must be UTF-8; got byte 0xff at 7; compressed files end in .gz",
    ),
    "no object": (PAIR, ["p", "c"], None, "must be a JSON object; got list; write one row a line"),
    "another kind": (
        PAIR,
        LABEL,
        None,
        "a comparison must have the fields chosen and rejected; got .*one kind",
    ),
    "no rejected": (PAIR, without(PAIR, "rejected"), None, "fields chosen and rejected; got chosen, prompt"),
    "a null": (LABEL, LABEL | {"label": None}, None, "fields completion and label; got completion, prompt"),
    "no prompt": (RATING, without(RATING, "prompt"), None, "prompt is missing; got .* completion, score"),
    "a number as text": (
        PAIR,
        PAIR | {"chosen": 3},
        None,
        "chosen must be a text or a list of messages; got int",
    ),
    "no messages": (
        PAIR,
        PAIR | {"prompt": []},
        None,
        "prompt must be a text or a list of messages; got list",
    ),
    "half a surrogate": (PAIR, PAIR | {"prompt": "a\ud83d"}, None, "half a surrogate pair at character 1"),
    "half in a message": (
        PAIR,
        PAIR | {"prompt": [USER | {"content": "\ude00"}]},
        None,
        r"prompt\[0\] must be Unicode",
    ),
    "no role": (
        PAIR,
        PAIR | {"prompt": [{"content": "u"}]},
        None,
        r"prompt\[0\] must be a message with a role",
    ),
    "the user's completion": (
        LABEL,
        LABEL | {"completion": [USER, BOT]},
        None,
        "completion must begin with the assistant's message; got 'user'; the messages before it belong to",
    ),
    "empty messages": (
        LABEL,
        LABEL | {"completion": [BOT | {"content": " "}]},
        None,
        "no message has content",
    ),
    "empty chosen": (PAIR, PAIR | {"chosen": "\n"}, None, "chosen is empty; remove the row, or skip_bad"),
    "empty completion": (RATING, RATING | {"completion": ""}, None, "completion is empty; remove the row"),
    "identical sides": (PAIR, PAIR | {"chosen": " r"}, None, "chosen and rejected are identical; remove"),
    "identical messages": (
        PAIR,
        {"prompt": "p", "chosen": [BOT], "rejected": [BOT | {"content": "a "}]},
        None,
        "chosen and rejected are identical",
    ),
    "a text beside messages": (
        PAIR,
        PAIR | {"chosen": [BOT]},
        None,
        "must both be texts or both lists of mess",
    ),
    "no prompt, of two forms": (PAIR, {"chosen": "c", "rejected": [BOT]}, None, "must both be texts or both"),
    "no turn in common": (
        PAIR,
        {"chosen": "\n\nHuman: a\n\nAssistant: c", "rejected": "\n\nHuman: ab\n\nAssistant: d"},
        None,
        "chosen and rejected must begin with the same turns, .* give prompt a field of its own",
    ),
    "plain and no prompt": (PAIR, without(PAIR, "prompt"), None, "must begin with the same turns"),
    "no message in common": (PAIR, {"chosen": [BOT], "rejected": [USER, BOT]}, None, "the same turns"),
    "a negative margin": (
        PAIR,
        PAIR | {"margin": -1},
        None,
        "margin must be a number from 0 to .*; got int '-1'",
    ),
    "three summaries": (
        POST,
        POST | {"summaries": [{"text": "a"}] * 3},
        None,
        "summaries must be two objects",
    ),
    "choice 2": (POST, POST | {"choice": 2}, None, "choice must be 0 or 1, the better summary; got '2'"),
    "choice 1.0": (
        POST,
        POST | {"choice": 1.0},
        None,
        "choice must be 0 or 1, the better summary; got '1.0'",
    ),
    "no post": (POST, POST | {"info": {"title": "t"}}, None, "must be an object with a post or an article"),
    "no axes": (
        AXES,
        AXES | {"summary": {"text": "a"}},
        None,
        "summary must be an object with text and axes",
    ),
    "no overall": (AXES, AXES | {"summary": {"text": "a", "axes": {}}}, None, "overall must be .*; got none"),
    "one completion": (RANKING, RANKING | {"completions": ["a"]}, None, "completions must be a list of two"),
    "identical in a ranking": (
        RANKING,
        RANKING | {"completions": ["a", "b", "a"]},
        None,
        r"completions\[0\] and completions\[2\] are identical",
    ),
    "a ranking's empty one": (
        RANKING,
        RANKING | {"completions": ["a", "b", ""]},
        None,
        r"completions\[2\] is empty",
    ),
    "score 11": (RATING, RATING | {"score": 11}, None, "score must be a number from 1 to 10; got int '11'"),
    "score 0.9": (RATING, RATING | {"score": 0.9}, None, "from 1 to 10; got float '0.9'"),
    "score NaN": (RATING, RATING | {"score": float("nan")}, None, "from 1 to 10; got float 'nan'"),
    "score in words": (RATING, RATING | {"score": "5"}, None, "from 1 to 10; got str '5'"),
    "score true": (RATING, RATING | {"score": True}, None, "from 1 to 10; got bool 'True'"),
    "an empty remark": (COMMENT, COMMENT | {"text": " "}, None, "text must be a remark in words; got none"),
    "messages as remark": (COMMENT, COMMENT | {"text": [USER]}, None, "text must be a remark in words"),
    "nothing corrected": (
        CORRECTION,
        CORRECTION | {"correction": "c\n"},
        None,
        "and correction are identical",
    ),
    "an empty correction": (CORRECTION, CORRECTION | {"correction": ""}, None, "correction is empty"),
    "label 2": (LABEL, LABEL | {"label": 2}, None, "label must be true or false; got '2'"),
    "label good": (LABEL, LABEL | {"label": "good"}, None, "label must be true or false; got 'good'"),
} | {
    f"ranking {ranks}": (RANKING, RANKING | {"ranking": ranks}, None, PLACES)
    for ranks in ([0, 1, 2], [1, 2], [1, 2, 4], [1, 1, 4], [2, 2, 3], [1.0, 2, 3], "123", [True, 2, 3])
}
"""What is wrong -> (a good row of the same kind, the bad one, kind, what the message says)."""


def read(*rows, name="rows.jsonl", change=lambda content: content, **options):
    """Read a file of these rows."""
    with tempfile.TemporaryDirectory() as folder:
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (Path(folder) / name).write_bytes(change(b"".join(line + b"\n" for line in lines)))
        return feedback.read_feedback(Path(folder) / name, **options)


def cut_gzip(content):
    return gzip.compress(content)[:-12]


MANY = [PAIR | {"prompt": str(i) * (i % 7)} for i in range(1000)]
BYTES = data.byte_tokenizer()
SIZES = {"prompt_length": 1, "completion_length": 8}
ONE = feedback.Comparison("p", "chosen", "r", source="rows.jsonl:4")
CASES = {
    f"feedback: {what}": (
        lambda g=good, b=bad, k=kind: read(g, b, kind=k),
        ValueError,
        rf"rows\.jsonl:2: .*{says}",
    )
    for what, (good, bad, kind, says) in BAD_ROWS.items()
} | {
    "feedback: no file": (
        lambda: feedback.read_feedback("none.jsonl"),
        ValueError,
        "found none at none.jsonl; check",
    ),
    "feedback: empty": (read, ValueError, "rows.jsonl must hold a row of feedback.*the file is empty"),
    "feedback: empty gz": (lambda: read(name="a.gz"), ValueError, "a.gz must hold a row .*the file is empty"),
    "feedback: all rows bad": (
        lambda: read(b"{", b"[]", skip_bad_rows=True),
        ValueError,
        r"all 2 rows are bad; first .*rows\.jsonl:1: the row must be JSON",
    ),
    "feedback: a truncated gz": (
        lambda: read(*MANY, name="a.gz", change=cut_gzip, skip_bad_rows=True),
        ValueError,
        r"a\.gz:\d{2,}: the file is truncated or not compressed by gzip \(.*\); copy it again",
    ),
    "feedback: a damaged gz": (
        lambda: read(PAIR, name="a.gz", change=lambda c: gzip.compress(c)[:12] + b"\xff" * 40),
        ValueError,
        r"a\.gz:1: the file is truncated or not compressed",
    ),
    "feedback: no gz": (lambda: read(PAIR, name="a.gz"), ValueError, r"a\.gz:1: .*not compressed by gzip"),
    "feedback: gz without its name": (
        lambda: read(PAIR, change=gzip.compress),
        ValueError,
        r"jsonl:1: the row must be UTF-8; got byte 0x8b at 1; compressed files end in \.gz",
    ),
    "feedback: another kind's name": (
        lambda: read(PAIR, kind="pair"),
        ValueError,
        "kind must be one of comparison, ranking, rating, text, correction, label; got 'pair'; None",
    ),
    "feedback: a scale upside down": (
        lambda: read(RATING, scale=(10, 1)),
        ValueError,
        r"scale must be \(lowest, highest\); got \(10, 1\)",
    ),
    "feedback: a scale of one point": (
        lambda: read(RATING, scale=(5, 5)),
        ValueError,
        r"scale must be \(lowest, highest\); got \(5, 5\)",
    ),
    "feedback: two kinds at once": (
        lambda: read(RATING | LABEL),
        ValueError,
        "jsonl:1: fields must be of one kind .*comparison: chosen and rejected; ranking: completions and .*"
        "got completion, label, prompt, score; they fit rating and label: name one, kind=",
    ),
    "feedback: no kind": (
        lambda: read({"text": "a", "x" * 90: 1}),
        ValueError,
        r"fields must be of one kind .*; got text, x+\.\.\.; rename them",
    ),
    "feedback tokens: a completion cut away": (
        lambda: feedback.encode_comparisons(BYTES, [ONE], prompt_length=1, completion_length=6),
        ValueError,
        "rows.jsonl:4: a completion of 7 tokens must fit completion_length=6; .*choose_fitting",
    ),
    "feedback tokens: none fit": (
        lambda: feedback.choose_fitting(BYTES, [ONE], prompt_length=1, completion_length=6),
        ValueError,
        "a row must fit completion_length=6; got none of 1; first rows.jsonl:4: a completion of 7",
    ),
    "feedback tokens: no prompt": (
        lambda: feedback.encode_comparisons(BYTES, [ONE], prompt_length=0, completion_length=8),
        ValueError,
        "prompt_length must be at least 1 token; got 0",
    ),
    "feedback tokens: half a token": (
        lambda: feedback.encode_comparisons(BYTES, [ONE], prompt_length=1, completion_length=8.5),
        ValueError,
        "completion_length must be at least 1 token; got 8.5",
    ),
    "feedback tokens: no rows": (
        lambda: feedback.encode_ratings(BYTES, [], **SIZES),
        ValueError,
        "rows must be at least one; got none",
    ),
    "feedback tokens: another kind": (
        lambda: feedback.encode_ratings(BYTES, [ONE], **SIZES),
        ValueError,
        "rows must be Rating or Label; got Comparison; each kind has its own encoder",
    ),
    "feedback tokens: an empty prompt": (
        lambda: feedback.encode_comparisons(
            BYTES, [ONE._replace(prompt="")], prompt_length=1, completion_length=8
        ),
        ValueError,
        "rows.jsonl:4: prompt and completion must have a token each; got none of one",
    ),
    "feedback tokens: an unknown character": (
        lambda: feedback.encode_comparisons(
            data.character_tokenizer("pcho"), [ONE], prompt_length=1, completion_length=8
        ),
        ValueError,
        r"rows.jsonl:4: these characters are not in the vocabulary: \['e', 'n', 's'\]",
    ),
    "feedback tokens: no stop token": (
        lambda: feedback.encode_comparisons(
            data.Tokenizer(BYTES._backend, {}), [ONE], prompt_length=1, completion_length=8
        ),
        ValueError,
        "rows.jsonl:4: the tokenizer must have a stop token; load_tokenizer",
    ),
}
