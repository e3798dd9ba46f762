"""Files that hold others: gzip, zip, `.npy` and `.safetensors`, changed inside and outside, and bombs."""

import ast
import functools
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable

from tests.fuzz.documents import change_json

BOMB = 300_000_000
"""Bytes that a bomb grows to, from about a thousandth."""
Change = Callable[[str, bytes, random.Random], bytes]
METHODS = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_BZIP2,
    zipfile.ZIP_LZMA,
)
NAMES = ("../../fuzz-escape", "/fuzz-escape", "a" * 5_000, "", "\0", "data/", "é", "data/x.jsonl", "x.npy")


def change_gzip(inner: str, data: bytes, rng: random.Random, change: Change) -> bytes:
    """Return a gzip file with other content, sometimes a bomb; one that is damaged already loses its end."""
    try:
        content = zlib.decompress(data, wbits=31)
    except zlib.error:
        return data[: rng.randrange(len(data) + 1)]
    how = rng.random()
    if how < 0.02:
        return _pack(content) + _gzip_bomb(rng.choice((b"\n", b"a", b"\0", b'{"a": 1}\n')))
    if how < 0.04:  # many members in one file, or what is none behind the last
        return rng.choice((_pack(content) * 50, _pack(content) + b"\0" * 999, _pack(content) + b"PK\3\4"))
    return _pack(change(inner, content, rng))


def _pack(content: bytes) -> bytes:
    packer = zlib.compressobj(1, wbits=31)
    return packer.compress(content) + packer.flush()


@functools.cache
def _gzip_bomb(unit: bytes) -> bytes:
    """Return members of a million bytes each, so that making it takes no time."""
    member = _pack(unit * (10**6 // len(unit)))
    return member * (BOMB // 10**6)


def change_zip(data: bytes, rng: random.Random, change: Change) -> bytes:
    """Return a zip file with another content, name, method or list; sometimes a bomb."""
    how = rng.random()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:  # damaged by an earlier change
        return data[: rng.randrange(len(data) + 1)]
    if not members or how < 0.25:
        return _damage_lists(data, rng)
    i = rng.randrange(len(members))
    name, content = members[i]
    if how < 0.27:
        return _zip_bomb(data, i)
    if how < 0.8:
        members[i] = (name, change(name, content, rng))
    elif how < 0.9:
        members[i] = (rng.choice((*NAMES, members[0][0])), content)
    elif how < 0.95:
        members.append((name, content))
    else:
        del members[i]
    return _write_zip(members, rng.choice(METHODS))


def _damage_lists(data: bytes, rng: random.Random) -> bytes:
    """Return a zip whose entries lie: about method, flags, sizes, checksums or where they begin."""
    marks = [i for mark in (b"PK\1\2", b"PK\3\4", b"PK\5\6") for i in _find_all(data, mark)]
    at = rng.choice(marks) + 4 + 2 * rng.randrange(20) if marks else rng.randrange(len(data))
    number = rng.choice((0, 1, 8, 9, 12, 14, 95, 99, 0x41, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 10**9))
    width = 2 if number <= 0xFFFF and rng.random() < 0.7 else 4
    return data[:at] + number.to_bytes(width, "little") + data[at + width :]


def _find_all(data: bytes, mark: bytes) -> list[int]:
    places, at = [], data.find(mark)
    while at >= 0 and len(places) < 50:
        places.append(at)
        at = data.find(mark, at + 1)
    return places


def _write_zip(members: list[tuple[str, bytes]], method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, content)
    return buffer.getvalue()


@functools.lru_cache(16)
def _zip_bomb(data: bytes, index: int) -> bytes:
    """Return the zip with a member that goes on for long."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for i, info in enumerate(old.infolist()):
            with new.open(info.filename, "w") as member:
                member.write(old.read(info))
                for _ in range(BOMB // 10**6 if i == index else 0):
                    member.write(b"\n" * 10**6)
    return buffer.getvalue()


LITERALS = (
    *(
        "True",
        "(True,)",
        "(10**26,)",
        "-1",
        "(-1,)",
        "(10**9, 10**9)",
        "()",
        "(0,)",
        "('a',)",
        "(1.5,)",
        "None",
    ),
    *(
        "'|O'",
        "'<u8'",
        "'<f4'",
        "'|V8'",
        "'<U5'",
        "'float999'",
        "[('a', '<i4')]",
        "['<i4']",
        "1e400",
        "{}",
        "''",
    ),
    *("(1," * 200 + ")" * 200, "(1000000000000,)", "(4294967296, 4294967296)", "b'a'", "{'a': 1}", "\\x00"),
    *("9" * 5_000, "[" * 500 + "]" * 500, "__import__('os').mkdir('fuzz-escape')"),
)


def change_array(data: bytes, rng: random.Random) -> bytes:
    """Return a `.npy` file whose header says something else, of the right length."""
    start = 10 if data[6:7] == b"\1" else 12
    length = int.from_bytes(data[8:start], "little")
    header, body = data[start : start + length], data[start + length :]
    try:
        fields = {key: repr(value) for key, value in ast.literal_eval(header.decode("latin-1")).items()}
    except Exception:  # changed before, in one of the many ways that Python's compiler refuses
        return data[: rng.randrange(len(data) + 1)]
    key = rng.choice(sorted(fields))
    fields[key] = rng.choice(LITERALS).replace("10**26", "1" + "0" * 26).replace("10**9", "1000000000")
    if rng.random() < 0.1:
        del fields[rng.choice(sorted(fields))]
    text = "{" + ", ".join(f"{key!r}: {value}" for key, value in fields.items()) + ", }"
    header = text.encode("latin-1")
    header += b" " * (-(start + len(header) + 1) % 64) + b"\n"
    if start == 10 and len(header) > 0xFFFF:
        return data[:start] + header
    return data[:8] + len(header).to_bytes(start - 8, "little") + header + body


def change_tensors(data: bytes, rng: random.Random) -> bytes:
    """Return a `.safetensors` file whose header says something else, of the right or of another length."""
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= len(data) - 8:
        return data[: rng.randrange(len(data) + 1)]
    header = change_json(data[8 : 8 + length], rng)
    said = len(header) if rng.random() < 0.9 else rng.choice((0, 1, 2**31, 2**63, 2**64 - 1))
    return struct.pack("<Q", said) + header + data[8 + length :]
