import json
import os
from typing import NamedTuple

import jax
import numpy as np
import pytest

from jaxrl_align.data.json_lines import open_jsonl, stream_jsonl

ROWS = [{"id": i, "text": "é" * (i % 5), "empty": None} for i in range(23)]
LINES = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(ROWS)]


class Pair(NamedTuple):
    """A row as arrays."""

    id: np.ndarray
    length: dict
    nothing: None = None


def encode(fields):
    assert "empty" not in fields
    return Pair(np.int32(fields["id"]), {"twice": np.full((2, 3), len(fields["text"]), np.float32)})


@pytest.fixture
def paths(tmp_path):
    """Files of 10, no, 12 and 1 rows, with blank lines here and there, and no last line's end."""
    texts = [
        "\n\n" + "\n".join(LINES[:10]) + "\n",
        " \n",
        "\r\n \t\f\r\n".join(LINES[10:22]) + "\n\n",
        LINES[22],
    ]
    found = [tmp_path / f"part-{i}.jsonl" for i in range(len(texts))]
    for path, text in zip(found, texts, strict=True):
        path.write_bytes(text.encode())
    return found


def test_rows_are_found_in_any_order(paths):
    lines = open_jsonl(paths)
    assert len(lines) == 23
    rows = [22, 0, 9, 10, 21, 10, 3]
    assert [row["id"] for row in lines.read(rows, dict)] == rows
    seen = []
    lines.read(rows, lambda fields: seen.append(fields["id"]))
    assert seen == sorted(rows), "a disk is read in one direction"
    assert lines.read([7], dict) == [{"id": 7, "text": "éé"}] and lines.read([], dict) == []
    assert len(open_jsonl(str(paths[2]))) == 12


def test_batches_read_every_row_once_an_epoch(paths):
    whole = stream_jsonl(open_jsonl(paths), encode, batch_size=5, seed=0)(0, 23)
    assert isinstance(whole, Pair) and whole.id.shape == (23, 5) and whole.id.dtype == np.int32
    assert whole.length["twice"].shape == (23, 5, 2, 3) and whole.nothing is None
    np.testing.assert_array_equal(whole.length["twice"], np.tile(whole.id[..., None, None] % 5, (1, 1, 2, 3)))
    epochs = whole.id.reshape(5, 23)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(23), (5, 1)))
    assert len({epoch.tobytes() for epoch in epochs}) == 5
    other = stream_jsonl(open_jsonl(paths), encode, batch_size=5, seed=1)(0, 23)
    assert (other.id != whole.id).mean() > 0.8


def test_batches_of_more_rows_than_there_are(paths):
    ids = stream_jsonl(open_jsonl(paths[3]), encode, batch_size=3, seed=0)(5, 2).id
    assert ids.tolist() == [[22] * 3] * 2
    ids = stream_jsonl(open_jsonl(paths), encode, batch_size=46, seed=0)(1, 1).id
    assert sorted(ids[0, :23]) == sorted(ids[0, 23:]) == list(range(23))


@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 8])
def test_any_number_of_hosts_at_any_step_read_the_same(paths, hosts):
    lines = open_jsonl(paths)
    whole = stream_jsonl(lines, encode, batch_size=24, seed=4)(0, 9)
    for first, steps in ((0, 9), (3, 4), (8, 1)):
        part = 24 // hosts
        parts = [
            stream_jsonl(open_jsonl(paths), encode, batch_size=24, seed=4)(first, steps, slice(i, i + part))
            for i in range(0, 24, part)
        ]
        joined = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *parts)
        expected = jax.tree.map(lambda x: x[first : first + steps], whole)  # noqa: B023
        jax.tree.map(np.testing.assert_array_equal, joined, expected)


def test_files_in_parts_are_read_as_one(paths, tmp_path):
    (tmp_path / "whole.jsonl").write_text("\n".join(LINES))
    one, several = (
        stream_jsonl(open_jsonl(source), encode, batch_size=4, seed=0)(0, 20)
        for source in (tmp_path / "whole.jsonl", paths)
    )
    jax.tree.map(np.testing.assert_array_equal, one, several)


def test_only_the_rows_of_a_process_are_parsed(paths):
    read = []
    batches = stream_jsonl(open_jsonl(paths), lambda f: read.append(f["id"]) or f["id"], batch_size=8, seed=0)
    assert read == [0]
    part = batches(2, 3, rows=slice(4, 6))
    assert sorted(read[1:]) == sorted(part.ravel()) and len(read) == 1 + 6


def test_a_bad_row_is_named_by_file_and_line(paths):
    text = paths[2].read_bytes()
    paths[2].write_bytes(text.replace(b'"id": 13', b'"id": 13 13'))
    batches = stream_jsonl(open_jsonl(paths), encode, batch_size=1, seed=0)
    line = rf"^{paths[2]}:7: the row must be JSON, one object a line; it is not \("
    with pytest.raises(ValueError, match=line):
        for step in range(23):
            batches(step, 1)


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (b'{"id": 1, "text": "\xff"}', "must be UTF-8; got byte 0xff"),
        (b"[1, 2]", "must be a JSON object; got list"),
        (b'{"id": ' + b"[" * 100 + b"]" * 100 + b"}", "more than 64 lists or objects"),
        (b'{"id": 1}', "encoding the row raised KeyError"),
        (b'{"id": 1, "text": "", "lines": 2}', "first second$"),
        (b'{"id": 1, "text": 7}', "encoding the row raised TypeError"),
        (b'{"id": "one", "text": ""}', "invalid literal"),
        (
            b'{"id": 1, "text": "", "wide": 2}',
            r"must make the same arrays .* int32\[\], float32\[2, 3\] as of",
        ),
        (b'{"id": 1, "text": "", "list": 2}', r"must make the same arrays .* got PyTreeDef"),
        (b'{"id": 1, "text": "", "half": 2}', r"got PyTreeDef.* of float16\[\], float32"),
        (b'{"id": 1, "text": "", "none": 2}', r"must return a tree of arrays; got None"),
        (b'{"id": 1, "text": "", "bug": 2}', "encoding the row raised AttributeError"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_in_one_line(tmp_path, spoilt, message):
    def pick(fields):
        whole = encode(fields)
        if "wide" in fields:
            return whole._replace(id=np.zeros(2, np.int32))
        if "lines" in fields:
            raise ValueError("first\nsecond")
        if "half" in fields:
            return whole._replace(id=np.float16(1))
        return (
            [*whole]
            if "list" in fields
            else fields["bug"].bug
            if "bug" in fields
            else (None if "none" in fields else whole)
        )

    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINES[0].encode() + b"\n" + spoilt + b"\n")
    with pytest.raises(ValueError, match=message) as caught:
        stream_jsonl(open_jsonl(path), pick, batch_size=2, seed=0)(0, 1)
    assert str(caught.value).startswith(f"{path}:2: ") and "\n" not in str(caught.value)


def test_a_bad_first_row_is_seen_before_a_run(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n{}\n")
    with pytest.raises(ValueError, match=rf"{path}:3: encoding the row raised KeyError\('id'\)"):
        stream_jsonl(open_jsonl(path), encode, batch_size=2, seed=0)


def _touch(path):
    now = path.stat()
    os.utime(path, ns=(now.st_atime_ns, now.st_mtime_ns + 10**9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_text(LINES[0]), "it had [0-9,]+ bytes and has 3"),
        (lambda path: path.write_text(""), "it had .* bytes and has 0; find them again with open_jsonl"),
        (lambda path: path.write_text("\n".join([*LINES, LINES[0]])), "it had .* bytes and has"),
        (_touch, "it was written again; find"),
    ],
)
def test_a_file_that_changes_is_refused(tmp_path, change, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(LINES))
    batches = stream_jsonl(open_jsonl(path), encode, batch_size=2, seed=0)
    batches(0, 1)
    change(path)
    with pytest.raises(ValueError, match=f"{path} must stay as it is while its rows are read; {message}"):
        batches(0, 1)


def test_a_file_cut_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(LINES))

    def cut(fields):
        os.truncate(path, 2000) if path.stat().st_size > 2000 else None
        return fields["id"]

    path.write_text("\n".join(line + " " * 9000 for line in LINES))  # beyond what a file reads ahead
    with pytest.raises(ValueError, match="a row had 90.. bytes and has"):
        open_jsonl(path).read([0, 22], cut)


def test_a_file_that_is_gone_is_an_error_of_the_system(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(LINES))
    lines = open_jsonl(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=str(path)):
        lines.read([0], dict)
