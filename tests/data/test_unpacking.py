"""What others packed or wrote is read within bounds."""

import gzip
import json
import zipfile

import pytest

from jaxrl_align.data import files
from jaxrl_align.data.files import (
    GZIP_DAMAGE,
    decode_text,
    parse_json,
    parse_table,
    unpack_lines,
    unpack_members,
    unpack_pieces,
)
from jaxrl_align.typed import one_line


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(files, "ROOM", 1_000)
    monkeypatch.setattr(files, "ARCHIVE_ROOM", 1_000)


@pytest.mark.parametrize("piece", [7, 2**20])
@pytest.mark.parametrize("packed", [False, True])
def test_lines_have_the_numbers_that_an_editor_shows(tmp_path, monkeypatch, piece, packed):
    monkeypatch.setattr(files, "_PIECE", piece)
    text = (
        b"abcdefg\n\n\n\n\n\n\nhijklmn\n\n \t\n        \nfirst\n"
        + b"\n" * 30
        + b"a long line, of two pieces at least\n  x \n\n\nlast"
    )
    path = tmp_path / ("a.gz" if packed else "a")
    path.write_bytes(gzip.compress(text) if packed else text)
    expected = [(i, line.strip()) for i, line in enumerate(text.split(b"\n"), 1) if line.strip()]
    assert [(number, line.strip()) for number, line in unpack_lines(path)] == expected
    assert b"".join(unpack_pieces(path)) == text


def test_a_gzip_file_grows_to_its_bound_and_no_further(tmp_path, small):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"a" * 1_000))
    assert len(b"".join(unpack_pieces(path))) == 1_000
    path.write_bytes(gzip.compress(b"a" * 1_001))
    with pytest.raises(ValueError, match=r"a\.gz must not unpack to more than 10 times its size"):
        list(unpack_pieces(path))
    noise = bytes(range(256)) * 4
    path.write_bytes(gzip.compress(noise + b"a" * 1_500))  # ten times what it takes
    assert len(b"".join(unpack_pieces(path))) == len(noise) + 1_500
    path.with_suffix("").write_bytes(b"a" * 2_000)  # what is not packed cannot grow
    assert len(b"".join(unpack_pieces(path.with_suffix("")))) == 2_000


def test_what_stands_before_a_damage_is_read(tmp_path):
    lines = b"".join(f"{i} {hash(i)}\n".encode() for i in range(30_000))
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(lines)[:-40_000])
    found = []
    with pytest.raises(GZIP_DAMAGE):
        for number, _ in unpack_lines(path):
            found.append(number)
    assert 1_000 < len(found) < 30_000


def write_zip(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_are_those_wanted_by_name_and_the_last_of_two(tmp_path):
    path = tmp_path / "a.zip"
    write_zip(path, [("c", b"3"), ("b", b"2"), ("a", b"1"), ("b", b"two")])
    assert list(unpack_members(path, lambda name: name != "c")) == [("a", b"1"), ("b", b"two")]


def test_members_share_a_bound(tmp_path, small):
    path = tmp_path / "a.zip"
    write_zip(path, [(name, b"a" * 200) for name in "abcde"])
    assert len(list(unpack_members(path, lambda name: True))) == 5
    write_zip(path, [("a", b"a" * 1_500), ("b", b"a" * 1_500)])
    assert 1_500 < 10 * path.stat().st_size < 3_000
    with pytest.raises(ValueError, match=r"a\.zip must not unpack to more than 10 times its size"):
        list(unpack_members(path, lambda name: True))
    assert len(list(unpack_members(path, lambda name: name == "a"))) == 1


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_ways_of_packing_are_refused(tmp_path, method):
    write_zip(tmp_path / "a.zip", [("x", b"1")], method)
    with pytest.raises(ValueError, match=r"a\.zip: 'x' must be packed by deflate"):
        list(unpack_members(tmp_path / "a.zip", lambda name: True))


@pytest.mark.parametrize(
    ("field", "value"), [(20, 10**6), (42, 10**6), (42, "end"), (16, 1), (10, 99), (46, 0xFF), (8, 0x800)]
)
def test_a_zip_whose_list_lies_is_refused_in_a_line(tmp_path, field, value):
    path = tmp_path / "a.zip"
    write_zip(path, [("x\u00e9", b"1" * 50)], zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2")
    width = {20: 4, 42: 4, 16: 4}.get(field, 2 if field != 46 else 1)
    number = len(data) - 10 if value == "end" else value
    data[at + field : at + field + width] = number.to_bytes(width, "little")
    if field == 20:  # both sizes of a member that is stored
        data[at + 24 : at + 28] = number.to_bytes(4, "little")
    if field == 46:
        data[at + 8 : at + 10] = (0x800).to_bytes(2, "little")
    path.write_bytes(data)
    try:
        list(unpack_members(path, lambda name: True))
    except ValueError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1
    else:
        assert field == 8


def test_a_password_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    write_zip(path, [("x", b"1")])
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.zip cannot be read: .*encrypted"):
        list(unpack_members(path, lambda name: True))


@pytest.mark.parametrize(("left", "right"), [("[", "]"), ('{"a":', "}")])
def test_json_lies_64_deep_at_most(left, right):
    write = lambda depth: left * depth + "1" + right * depth
    assert json.dumps(parse_json(write(64))).count(left[0]) == 64
    for depth in (65, 300, 100_000):
        with pytest.raises(ValueError, match="more than 64 lists or objects"):
            parse_json(write(depth))
    wide = lambda depth: "[" + ",".join([write(depth)] * 3) + "]"
    assert len(parse_json(wide(63))) == 3
    with pytest.raises(ValueError, match="more than 64 lists or objects"):
        parse_json(wide(64))


def test_text_is_utf_8_with_or_without_a_mark():
    assert decode_text(b"\xef\xbb\xbfa\xc3\xa9", "x") == decode_text("aé".encode(), "x") == "aé"
    with pytest.raises(ValueError, match=r"^x must be UTF-8; got others \(.*\); convert it"):
        decode_text(b"\xff", "x")


def test_cells_have_their_line_and_a_cell_must_end():
    rows = parse_table(["a,b\n", "\n", '"c\n', 'd",e\n'], "x.csv")
    assert list(rows) == [(1, ["a", "b"]), (4, ["c\nd", "e"])]
    with pytest.raises(ValueError, match=r"^x\.csv:2: the row is no row of a table"):
        list(parse_table(["a\n", '"' + "b" * 200_000], "x.csv"))


def test_a_quoted_text_is_one_short_line():
    assert one_line("a\n b\u2028c\x1cd") == "a b c d"
    assert one_line("a" * 501) == "a" * 497 + "..." and one_line("a" * 500) == "a" * 500
