"""Data files: where they are sought, and how what others packed or wrote as JSON is read within bounds.

A file is sought in the user's own folder, then in a cache, and then downloaded with a checksum.
"""

import csv
import gzip
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl_align.typed import is_dense, one_line

DATA_VARIABLE = "JAXRL_ALIGN_DATA"

GROWTH = 10
"""A packed file may grow to this many times its size."""
ROOM, ARCHIVE_ROOM = 8 * 2**20, 32 * 2**20
"""Bytes that a gzip file, and the members of a zip file together, may grow to however small it is."""
DEPTH = 64
"""Lists and objects inside each other that JSON may have: comparing, printing and writing values recur."""
TOO_DEEP = f"more than {DEPTH} lists or objects are inside each other"
GZIP_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)
"""What `unpack_pieces` raises for a file that is truncated or no gzip."""
_PIECE = 2**20


class DataFile(NamedTuple):
    """A file that the library can read, and where the world keeps it."""

    name: str
    """Path below the data folder, with forward slashes."""
    url: str
    sha256: str
    """Of the file behind `url`; a user's own file is read as it is."""


def cache_folder() -> Path:
    """Return the folder of downloads: `$XDG_CACHE_HOME/jaxrl_align`, by default under `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "jaxrl_align"


def find_own_file(name: str) -> Path | None:
    """Return the path of a file in the user's own folder, `$JAXRL_ALIGN_DATA`, or None."""
    own = os.environ.get(DATA_VARIABLE)
    return path if own and (path := Path(own) / name).is_file() else None


def find_file(file: DataFile) -> Path:
    """Return the file's path, from `$JAXRL_ALIGN_DATA`, the cache or its URL, whichever has it first.

    A download is kept only if its checksum is right, and a cached file is checked again at every use.

    Args:
      file: name, address and checksum.

    Raises:
      FileNotFoundError: nobody has the file; the message says where it was sought and how to provide it.
      ImportError: a download needs the `data` extra.
    """
    own = os.environ.get(DATA_VARIABLE)
    if (path := find_own_file(file.name)) is not None:
        return path
    target = cache_folder() / file.name
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"{file.name} is not in ${DATA_VARIABLE} ({own or 'unset'}), and downloads need pooch: "
            "pip install jaxrl-align[data]"
        ) from error
    try:
        # pooch checks a file that is there, and moves a new one into place only after its check.
        pooch.retrieve(file.url, f"sha256:{file.sha256}", target.name, target.parent, progressbar=False)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{file.name} is neither in ${DATA_VARIABLE} ({own or 'unset'}) nor in {cache_folder()}, and "
            f"downloading {one_line(file.url)} failed ({one_line(str(error))}); put the file in a folder and "
            f"name it in ${DATA_VARIABLE}"
        ) from error
    return target


def unpack_pieces(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes in pieces of at most a mebibyte, unpacked if its name ends in `.gz`.

    Raises:
      ValueError: it grows to more than `GROWTH` times its size, and more than `ROOM`.
      EOFError, zlib.error, gzip.BadGzipFile: `GZIP_DAMAGE`, for the caller to say where.
    """
    packed = path.suffix == ".gz"
    with gzip.open(path, "rb") if packed else open(path, "rb") as file:
        bound = _bound(path, ROOM) if packed else None
        # `read1` gives what is there before a damage.
        yield from _bounded(file.read1, bound, path)


def unpack_members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytearray]]:
    """Yield name and content of the files inside a zip whose names are wanted, sorted by name.

    Raises:
      OSError: there is no such file.
      ValueError: it is no zip file or a damaged one, a member has a password or is packed otherwise than by
        deflate, or its members grow to more than `GROWTH` times its size, and more than `ARCHIVE_ROOM`.
    """
    left = _bound(path, ARCHIVE_ROOM)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist() if wanted(info.filename)}
            for name, info in sorted(members.items()):
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{path}: {name!r:.80} must be packed by deflate; pack it again")
                content = bytearray()
                with archive.open(info) as file:
                    for piece in _bounded(file.read, left, path):
                        content += piece
                left -= len(content)
                yield name, content
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError, OSError) as error:
        raise ValueError(
            f"{path} must be a zip file; cannot read it: {one_line(str(error))}; get it again"
        ) from error
    except RuntimeError as error:  # encrypted, or a feature that Python lacks
        raise ValueError(
            f"{path} cannot be read: {one_line(str(error))}; pack it again without that"
        ) from error


def _bound(path: Path, room: int) -> int:
    return max(room, GROWTH * path.stat().st_size)


def _bounded(read: Callable[[int], bytes], bound: int | None, path: Path) -> Iterator[bytes]:
    """Yield pieces, and raise ValueError beyond so many bytes."""
    count = 0
    while piece := read(_PIECE):
        count += len(piece)
        if bound is not None and count > bound:
            raise ValueError(
                f"{path} must not unpack to more than {GROWTH} times its size; it goes on beyond "
                f"{bound / 2**20:.0f} MiB; unpack it yourself if you trust it"
            )
        yield piece


def unpack_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of a file's lines that are not blank; raises as `unpack_pieces`."""
    number, rest = 0, bytearray()
    for piece in unpack_pieces(path):
        if not rest and not piece.strip():  # so that megabytes of blank lines take no seconds
            number += piece.count(b"\n")
            continue
        rest += piece
        if b"\n" in piece:
            whole = bytes(rest[: rest.rindex(b"\n") + 1])
            del rest[: len(whole)]
            for line in io.BytesIO(whole):
                number += 1
                if line.strip():
                    yield number, line
    if rest.strip():
        yield number + 1, bytes(rest)


def decode_text(raw: bytes | bytearray, place: str) -> str:
    """Return bytes in UTF-8 as text, without the mark that some programs put before it.

    Raises:
      ValueError: they are no UTF-8.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} must be UTF-8; got others ({error}); convert it") from error


def parse_table(lines: Iterable[str], place: str, **form: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of the rows of a table, of `csv.reader`'s forms; empty lines are none.

    Raises:
      ValueError: with `place:line`, for a cell that never ends.
    """
    reader = csv.reader(lines, **form)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise ValueError(f"{place}:{reader.line_num}: the row is no row of a table: {error}") from error


def parse_json(text: str, of_pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return the value in a JSON text.

    Args:
      text: JSON.
      of_pairs: makes an object of its names and values; None, a dict in which the last of two names counts.

    Raises:
      ValueError: it is no JSON, or its lists and objects lie more than `DEPTH` inside each other.
    """
    if len(text) > 2**22 and is_dense(text.encode("utf-8", "surrogatepass")):
        raise ValueError("it holds more lists and objects than text; write it with fewer")
    try:
        value = json.loads(text, object_pairs_hook=of_pairs)
    except RecursionError:
        deep = True
    else:
        # Few values have as many brackets as may lie inside each other; the others are looked through.
        deep = text.count("[") + text.count("{") > DEPTH and is_deep(value)
    if deep:
        raise ValueError(TOO_DEEP)
    return value


def parse_row(line: bytes) -> dict[str, Any]:
    """Return the fields of a row that are not null.

    Raises:
      ValueError: if it is not UTF-8 or no JSON object.
    """
    try:
        fields = parse_json(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the row must be UTF-8; got byte {line[error.start]:#04x} at {error.start}; compressed files "
            "end in .gz"
        ) from error
    except ValueError as error:
        raise ValueError(f"the row must be JSON, one object a line; it is not ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"the row must be a JSON object; got {type(fields).__name__}; write one row a line")
    return {name: value for name, value in fields.items() if value is not None}


def is_deep(value: Any) -> bool:
    """Return whether lists and mappings lie more than `DEPTH` inside each other, or inside themselves."""
    layer = [value]
    for _ in range(DEPTH + 1):
        layer = [
            inner
            for one in layer
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(layer)
