"""The rows of a task: where its files are found, and how each format is read, with the place of every row."""

import fnmatch
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl_align.data.blimp import BLIMP
from jaxrl_align.data.files import (
    DATA_VARIABLE,
    DataFile,
    decode_text,
    find_file,
    find_own_file,
    parse_json,
    parse_table,
    unpack_members,
)
from jaxrl_align.data.labelled_texts import SENTCONV, parse_labelled
from jaxrl_align.data.probes import CLOZE_PROBES
from jaxrl_align.typed import one_line

FORMATS = ("label text", "jsonl", "json", "tsv", "csv", "worked examples", "probes")
KNOWN_FILES = {file.name: file for file in (*SENTCONV.values(), BLIMP)}
"""Files whose address and checksum the package has already, by their path below the data folder."""


@dataclass(frozen=True)
class RowFile:
    """A file of rows; a split is a list of them."""

    format: str
    """One of "label text" (a number and a text a line; fields `label`, `text`), "jsonl", "json" (see `each`),
    "tsv" (no quotes), "csv", "worked examples" (BIG-Bench Hard's prompts; fields `input`, `reasoning`,
    `target`), or "probes" (the lecture's seven, which need no file; fields `skill`, `text`, `filled`)."""
    path: str = ""
    """Beside the task file or below the data folder, with forward slashes."""
    url: str = ""
    """Where the file, or the archive of this path, can be had."""
    sha256: str = ""
    """Of what `url` gives; with it a missing file is downloaded, without it the error names the address."""
    member: str = ""
    """In a zip file, the file inside; `*` stands for any characters: all that fit, by name."""
    columns: tuple[str, ...] = ()
    """Of tsv and csv: names of the columns, where the file's first line does not give them."""
    skip_lines: int = 0
    """Lines before the first row that `columns` replaces."""
    each: str = ""
    """Of json and jsonl: dotted path to a list, or to lists inside lists, whose entries are the rows. The
    fields along the path are reached by it and, where no outer field has the name, without it."""
    left_out: tuple[int, ...] = ()
    """Rows known to be faulty, counted from 1, which are not read."""
    skip_incomplete: bool = False
    """Leave out lines of a tsv that lack columns, as QQP's file has; otherwise they are an error."""


_OPENING = "Let's think step by step."
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
"""Half a surrogate pair, which no tokenizer can encode, or one of two halves."""
_PLAIN_NAME = re.compile(r"[^\\/:*?\"<>|]{1,255}")


class Row(NamedTuple):
    """The fields of one row, and where it stands."""

    fields: Mapping[str, Any]
    place: str
    """`file:line`, or `file, row n` where rows are no lines."""


def read_rows(file: RowFile, folder: Path) -> list[Row]:
    """Return the rows of a file.

    Args:
      file: where it is, and its format.
      folder: the task file's, where rows are sought first.

    Raises:
      FileNotFoundError: nobody has the file; the message says where it is wanted and where it can be had.
      ImportError: a download needs the `data` extra.
      ValueError: with file and line, for a row that cannot be read; for a file without rows.
    """
    if file.format == "probes":
        rows = [_probe(i, probe) for i, probe in enumerate(CLOZE_PROBES, 1)]
    else:
        path = find_rows(file, folder)
        rows = [row for name, raw in _contents(path, file.member) for row in _parse(file, name, raw)]
    kept = [row for number, row in enumerate(rows, 1) if number not in file.left_out]
    if not kept:
        raise ValueError(f"{file.path} must hold rows; it has none")
    return kept


def find_rows(file: RowFile, folder: Path) -> Path:
    """Return the path of a file of rows: beside the task file, in the data folder, the cache or downloaded.

    Raises:
      FileNotFoundError, ImportError: as `read_rows`.
    """
    # A download is written to this path below the cache.
    parts = file.path.split("/")
    plain = all(_PLAIN_NAME.fullmatch(part) and part not in (".", "..") for part in parts)
    if not (plain and file.path.isprintable()):
        raise ValueError(
            f"a path must lie below the folder of the task file, {folder}, with forward slashes; got "
            f"{file.path[:80]!r}"
        )
    if (beside := folder / file.path).is_file():
        return beside
    known = KNOWN_FILES.get(file.path)
    if known is not None or file.sha256:
        return find_file(known or DataFile(file.path, file.url, file.sha256))
    # Without a checksum nothing is downloaded, but a file that the user has put there is read.
    if (own := find_own_file(file.path)) is None:
        where = (
            f"get it from {one_line(file.url)} and put it there"
            if file.url
            else "put it there, or correct the path"
        )
        raise FileNotFoundError(
            f"the task wants the file {file.path} beside its task file ({folder}) or below ${DATA_VARIABLE} "
            f"({os.environ.get(DATA_VARIABLE) or 'unset'}); found none; {where}"
        )
    return own


def _contents(path: Path, member: str) -> Iterator[tuple[str, bytes | bytearray]]:
    """Yield the name and the bytes of a file, or of the files inside an archive."""
    if not member:
        yield str(path), path.read_bytes()
        return
    inside, found = list[str](), 0

    def wanted(name: str) -> bool:
        inside.append(name)
        return fnmatch.fnmatchcase(name, member)

    for name, content in unpack_members(path, wanted):
        found += 1
        yield f"{path}/{one_line(name, 200)}", content
    if not found:
        there = one_line(", ".join(inside[:5]), 200)
        raise ValueError(f"{path} must hold {one_line(member, 80)}; got {there}; is it another archive?")


def _parse(file: RowFile, name: str, raw: bytes | bytearray) -> Iterable[Row]:
    if file.format == "label text":
        labelled = parse_labelled(raw, 10**9, name)
        pairs = zip(labelled.labels, labelled.texts, strict=True)
        return [
            Row({"label": label, "text": text}, f"{name}:{i}") for i, (label, text) in enumerate(pairs, 1)
        ]
    text = decode_text(raw, name).replace("\r\n", "\n")
    if file.format == "jsonl":
        return _parse_jsonl(file, name, text)
    if file.format == "json":
        parts = enumerate(_spread(_load(text, name), file.each, name), 1)
        return [Row(fields, f"{name}, row {i}") for i, fields in parts]
    return _parse_worked(name, text) if file.format == "worked examples" else _parse_table(file, name, text)


def _parse_jsonl(file: RowFile, name: str, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{name}:{number}"
            rows += [Row(fields, place) for fields in _spread(_load(line, place), file.each, place)]
    return rows


def _load(text: str, place: str) -> Any:
    try:
        value = parse_json(text)
        if _HALF_PAIR.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except ValueError as error:
        raise ValueError(f"{place}: expected JSON; got {text[:40]!r} ({error})") from error


def _spread(value: Any, each: str, place: str) -> list[dict[str, Any]]:
    """Return a JSON value's rows: itself, its entries, or those of the lists that `each` leads to."""
    path = each.split(".") if each else []
    rows = []
    for whole in _entries(value, path, place):
        fields, node = whole, whole
        for name in path if isinstance(whole, dict) else []:
            node = node[name]
            fields = {**node, **fields} if isinstance(node, dict) else fields
        if not isinstance(fields, dict):
            raise ValueError(f"{place}: expected an object of fields; got {str(fields)[:40]!r}")
        rows.append(fields)
    return rows


def _entries(value: Any, path: Sequence[str], place: str) -> Iterator[Any]:
    """Yield a value once for each entry of the lists on a path, the entry in the place of its list."""
    if isinstance(value, list):
        for item in value:
            yield from _entries(item, path, place)
    elif not path:
        yield value
    elif not isinstance(value, dict) or path[0] not in value:
        raise ValueError(f"{place}: `each` wants the field {path[0]!r}; got {str(value)[:60]!r}")
    else:
        for entry in _entries(value[path[0]], path[1:], place):
            yield {**value, path[0]: entry}


def _parse_table(file: RowFile, name: str, text: str) -> list[Row]:
    """Return the rows of tab- or comma-separated columns."""
    lines: Iterator[tuple[int, list[str]]]
    if file.format == "tsv":
        lines = ((i, line.split("\t")) for i, line in enumerate(text.split("\n"), 1) if line)
    else:
        lines = parse_table(text.split("\n"), name, strict=True)
    columns = list(file.columns)
    rows = []
    for number, cells in lines:
        if number <= file.skip_lines:
            continue
        if not columns:
            columns = cells
            continue
        if len(cells) != len(columns):
            if file.skip_incomplete:
                continue
            named = one_line(", ".join(columns))
            raise ValueError(
                f"{name}:{number}: expected {len(columns)} columns ({named}); got {len(cells)}; "
                "correct the line, or `columns` of the task file"
            )
        rows.append(Row(dict(zip(columns, cells, strict=True)), f"{name}:{number}"))
    return rows


def _parse_worked(name: str, text: str) -> list[Row]:
    """Return the examples of a prompt file of BIG-Bench Hard, Q, A and the words before the answer apart."""
    rows = []
    for number, block in enumerate(re.split(r"\n\nQ: ", text)[1:], 1):
        question, _, worked = block.partition("\nA: ")
        reasoning, ending, target = worked.partition("So the answer is ")
        if not ending:
            raise ValueError(
                f'{name}, example {number}: expected "Q: ...", "A: ..." and "So the answer is ..."; got '
                f"{block[-60:]!r}"
            )
        if reasoning.startswith(_OPENING):
            reasoning = reasoning[len(_OPENING) :].lstrip()
        target = target.rstrip().removesuffix(".")
        fields = {"input": question, "reasoning": reasoning.rstrip(), "target": target}
        rows.append(Row(fields, f"{name}, example {number}"))
    return rows


def _probe(number: int, probe: Any) -> Row:
    fields = {"skill": probe.skill, "text": probe.text, "filled": probe.filled()}
    return Row(fields, f"the probe of {probe.skill}, row {number}")
