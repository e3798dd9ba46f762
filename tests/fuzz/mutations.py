"""Changed files: the good input of a reader, with hostile values, words and bytes in it.

Every change draws from a `random.Random`, so that `changed_files` gives hypothesis what it can shrink, and a
number alone gives the same files again: `mutate(files, random.Random("tokens 123"))`.
"""

import random
from collections.abc import Mapping

from hypothesis import strategies as st

from tests.fuzz.containers import change_array, change_gzip, change_tensors, change_zip
from tests.fuzz.documents import change_json, change_lines

WORDS = (
    *("", "\0", "\n", "\r", "\t", "  ", "\u2028", "\ufeff", "\x1b[31m", "\udc80", "é" * 3, "\U0001f600"),
    *("-1", "0", "1e400", "nan", ".nan", "inf", "-.inf", "1" * 5_000, "0x10", "0o17", "1_000", "9" * 26),
    *("true", "false", "yes", "null", "~", "None", "True", "[]", "{}", '""', "''", "[[]]", "{{}}"),
    *('"', "'", '"""', "'''", "\\", "\\u", '"\\ud800"', "#", ":", ": ", "=", ",", "- ", "[", "]", "{", "}"),
    *("{% for", "%}", "{{", "}}", "{{ 9**9**9 }}", "<|endoftext|>", "&a", "*a", "<<: *a", "!!python/none"),
    *("../../fuzz-escape", "/etc/passwd", "C:\\con", "a" * 100_000, "[" * 5_000, "{" * 5_000, "a." * 3_000),
    *("(a+)+$", "(", "(?P<", "2026-01-01", "07:32:00", "1979-05-27T07:32:00Z", "!!binary aGk="),
)
LINES = (
    'a: &a ["x"]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n'
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e]",
    "x: !!python/object/apply:os.mkdir ['fuzz-escape']",
    "a: &a {<<: *a}",
    "? [a, b]\n: 1",
    "--- \n--- ",
    "[[test]]",
    "[options]",
    "x = " + "[" * 2_000,
    "a" + ".a" * 2_000 + " = 1",
    '{"prompt": "a"}',
    "[]",
    "null",
    '"a","b\n',
    "*** START OF THE ***",
    "{% set x = fuzz %}",
)
INTEGERS = (0, 1, -1, 127, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
LARGE = 300_000
"""Bytes of a file that is a bomb already, or long enough: only bare bytes of it change further."""
TEXTS = (".toml", ".yaml", ".yml", ".csv", ".tsv", ".txt", ".jinja", ".md")


def changed_files(files: Mapping[str, bytes]) -> st.SearchStrategy[dict[str, bytes]]:
    """Return a strategy of the files with a few changes."""
    return st.randoms(use_true_random=False).map(lambda rng: mutate(files, rng))


def mutate(files: Mapping[str, bytes], rng: random.Random) -> dict[str, bytes]:
    """Return the files with one to four changes in one or two of them; sometimes one is gone."""
    changed = dict(files)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        name = rng.choice(sorted(changed))
        changed[name] = change_file(name, changed[name], rng)
    if len(changed) > 1 and rng.random() < 0.02:
        del changed[rng.choice(sorted(changed))]
    return changed


def change_file(name: str, data: bytes, rng: random.Random) -> bytes:
    """Return a file with one change that its kind suggests, or in one of four a change of bare bytes."""
    if not 0 < len(data) < LARGE or rng.random() < 0.25:
        return change_bytes(data, rng)
    if data[:2] == b"\x1f\x8b":
        return change_gzip(name.removesuffix(".gz"), data, rng, change_file)
    if data[:2] == b"PK":
        return change_zip(data, rng, change_file)
    if data[:6] == b"\x93NUMPY":
        return change_array(data, rng)
    if name.endswith(".safetensors"):
        return change_tensors(data, rng)
    if name.endswith(".jsonl"):
        return change_lines(data, rng) if rng.random() < 0.7 else change_text(data, rng)
    if name.endswith(".json"):
        return change_json(data, rng) if rng.random() < 0.85 else change_text(data, rng)
    return change_text(data, rng) if name.endswith(TEXTS) or data.isascii() else change_bytes(data, rng)


def change_text(data: bytes, rng: random.Random) -> bytes:
    """Return a text with words or lines changed, in any encoding."""
    how = rng.randrange(8)
    text = data.decode("utf-8", "surrogateescape")
    if how < 3:  # a word of the text becomes another, or goes
        words = _split(text)
        i = rng.randrange(len(words))
        words[i] = rng.choice((rng.choice(WORDS), rng.choice(WORDS), rng.choice(words), ""))
        text = "".join(words)
    elif how == 3:
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(WORDS) + text[at:]
    elif how < 7:
        lines = text.split("\n")
        i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
        other = rng.choice(
            ([], [lines[j]], [lines[i]] * 2, [lines[i][:500]] * 500, [rng.choice(LINES), lines[i]])
        )
        text = "\n".join([*lines[:i], *other, *lines[i + 1 :]])
    else:
        return _encode_otherwise(text, rng)
    return text.encode("utf-8", "surrogatepass" if "\udc80" in text else "surrogateescape")


def _split(text: str) -> list[str]:
    """Return words, runs of space and single marks, at least one."""
    words, last = [""], ""
    for char in text:
        kind = "a" if char.isalnum() or char == "_" else " " if char.isspace() else char
        if kind != last or kind not in "a ":
            words.append("")
        words[-1] += char
        last = kind
    return words[1:] or words


def _encode_otherwise(text: str, rng: random.Random) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    at = rng.randrange(len(data) + 1)
    return rng.choice(
        (
            b"\xef\xbb\xbf" + data,
            data.replace(b"\n", b"\r\n"),
            data.replace(b"\n", b"\r"),
            data[:at] + b"\xff\xfe\x80" + data[at:],
            data[:at] + b"\xed\xa0\x80" + data[at:],
            text.encode("utf-16", "surrogatepass"),
            data + data,
            data.replace(b" ", b"\t"),
            data.replace(b" ", b"\xc2\xa0"),
            b"\n" * 20_000 + data + b" " * 20_000,
        )
    )


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return bytes that are cut, flipped, moved, or hold another number; headers more often than the rest."""
    if not data:
        return rng.choice((b"\0", b"{", b"\n", b"\xff" * 8, b"PK\x05\x06" + b"\0" * 18))
    at = rng.randrange(min(len(data), 64) if rng.random() < 0.5 else len(data))
    length = 1 + rng.randrange(min(len(data), rng.choice((1, 4, 64, 4096))))
    how = rng.randrange(8)
    if how == 0:
        return rng.choice((data[:at], data[: len(data) - length], b"", data[at:]))
    if how in (1, 2):
        flipped = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            flipped[rng.randrange(at, len(data))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if how in (3, 4):
        width, order = rng.choice((4, 8)), rng.choice(("little", "big"))
        number = rng.choice(INTEGERS) % 2 ** (8 * width)
        return data[:at] + number.to_bytes(width, order) + data[at + width :]
    filler = rng.choice((b"\0", b"\xff", b" ", b"A", data[at : at + 1])) * length
    if how == 5:
        return data[:at] + filler + data[at:]
    if how == 6:
        return data[:at] + data[at + length :]
    return data[:at] + filler + data[at + length :]
