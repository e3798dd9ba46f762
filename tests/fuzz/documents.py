"""JSON with hostile values, keys and depths in it: changes that leave the rest well-formed."""

import json
import random
from typing import Any


class Raw(str):
    """Text that is written into a document as it is, such as a number that Python cannot print."""


DEEP = 20_000
HOSTILE = (
    *(None, True, False, 0, 1, -1, 2, 1.5, -0.5, 1e-300, 1e300, 10**12, 10**26, 2**31, 2**63, -(2**63)),
    *("", " ", "\0", "true", "false", "0", "1", "null", "None", "nan", "a", "é", "\ud800", "a\nb", "\x1b[2J"),
    *("../../fuzz-escape", "/etc/passwd", "..", "a/../../b", "C:\\con", "con", "a" * 100_000, "{" * 5_000),
    *("{{ 10**(10**8) }}", "{% for x in y %}", "(a+)+$", "[", "<|endoftext|>", "float999", "O", "assistant"),
    *(
        [],
        {},
        [[]],
        [{}],
        [None],
        [True],
        [""],
        [1, "a"],
        {"": 1},
        {"a": None},
        {"role": "user"},
        [0] * 2_000,
    ),
    *map(Raw, ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1" + "0" * 400, "1" + "0" * 5_000, "-0")),
    *(Raw("[" * DEEP + "]" * DEEP), Raw('{"a":' * DEEP + "1" + "}" * DEEP), Raw("01"), Raw("'a'"), Raw("")),
)
_MARK = "\ue000"


def change_json(data: bytes, rng: random.Random) -> bytes:
    """Return a JSON document with a value, a key or the whole replaced; what is none loses its end."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data[: rng.randrange(len(data) + 1)]
    if rng.random() < 0.03:
        return dump_json(rng.choice(HOSTILE))
    holder = [document]
    _change_inside(holder, rng)
    return dump_json(holder[0])


def change_lines(data: bytes, rng: random.Random) -> bytes:
    """Return JSON lines with one of them changed."""
    lines = data.split(b"\n")
    i = rng.randrange(len(lines))
    lines[i] = change_json(lines[i], rng) if lines[i].strip() else dump_json(rng.choice(HOSTILE))
    return b"\n".join(lines)


def _change_inside(holder: Any, rng: random.Random) -> None:
    """Change a random place of a document: a walk down that may stop at every value."""
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = rng.choice(keys)
        below = holder[key]
        if isinstance(below, dict | list) and below and rng.random() < 0.85:
            holder = below
            continue
        break
    how = rng.randrange(8)
    if how < 5:
        holder[key] = rng.choice(HOSTILE)
    elif how == 5:
        del holder[key]
        if not holder and isinstance(holder, list):
            holder.append(rng.choice(HOSTILE))
    elif isinstance(holder, dict):
        name = rng.choice((f"{key}{_MARK}", f"{key}{_MARK}", "fuzz", "", "__class__", str(key).upper()))
        holder[name] = rng.choice((*HOSTILE, below))
    else:
        holder.extend(rng.choice(([below], [below] * 100, [rng.choice(HOSTILE)])))


def dump_json(document: Any) -> bytes:
    """Return a document as bytes, with `Raw` text as it is and keys that stand twice."""
    raw: list[str] = []

    def prepare(value: Any) -> Any:
        if isinstance(value, Raw):
            raw.append(str(value))
            return f"{_MARK}{len(raw) - 1}{_MARK}"
        if isinstance(value, dict):
            return {key: prepare(inner) for key, inner in value.items()}
        return [prepare(inner) for inner in value] if isinstance(value, list) else value

    text = json.dumps(prepare(document), ensure_ascii=False)
    for i, one in enumerate(raw):
        text = text.replace(f'"{_MARK}{i}{_MARK}"', one)
    # Half a surrogate pair is no UTF-8; JSON can still write it.
    return text.replace(_MARK, "").replace("\ud800", "\\ud800").encode("utf-8", "surrogatepass")
