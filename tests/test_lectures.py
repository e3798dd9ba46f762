"""docs/lectures.md has a row for every lecture item that the code cites, and its names exist."""

import importlib
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "lectures.md").read_text(encoding="utf-8")
ROWS = [re.split(r"(?<!\\)\|", line)[1:-1] for line in PAGE.splitlines() if line.startswith("| <a id=")]
WHERE = {re.sub(r"<.*?>", "", cells[0]).strip(): cells[3] for cells in ROWS}
"""Item -> where it is built."""
TESTED = {item: cells[4] for item, cells in zip(WHERE, ROWS, strict=True)}
"""Item -> the tests that hold it."""

PARENTHESIS = re.compile(r"\(([^()]*)\)")
AFTER_A_WORD = re.compile(r"\b(?:[Ll]ectures?|[Ee]rrat(?:um|a)|Source)\b(?=([^.()]{0,80}))")
ITEMS = re.compile(r"\b([A-FH])(\d{1,2})\b(?:\s*(?:-|to)\s*\1(\d{1,2})\b)?")
LINK = re.compile(r"lectures\.md#(\w+)")
OTHERS = {"C51"}
"""What looks like an item and is none: an algorithm."""


def prose(source: str) -> list[str]:
    """Return a source's strings and comments, those of adjacent lines as one."""
    pieces, last = [], -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.STRING:
            pieces.append(token.string)
        elif token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ")
            if token.start[0] == last + 1:
                text = f"{pieces.pop()} {text}"
            pieces.append(text)
            last = token.start[0]
    return pieces


def cited(text: str) -> set[str]:
    """Return the items that are linked, or named in a parenthesis or soon after "lecture" and the like."""
    found = set()
    for place in PARENTHESIS.findall(text) + AFTER_A_WORD.findall(text):
        for letter, first, last in ITEMS.findall(place):
            found |= {f"{letter}{number}" for number in range(int(first), int(last or first) + 1)}
    return found - OTHERS | {anchor.upper() for anchor in LINK.findall(text)}


def exists(name: str) -> bool:
    """Return whether there is such a file, or such a `room.name` or `room.module.name` in the package."""
    if "/" in name:
        return (ROOT / name).is_file()
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(["jaxrl_align", *parts[:cut]]))
        except ModuleNotFoundError:
            continue
        return all((found := getattr(found, part, None)) is not None for part in parts[cut:])
    return False


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("Source: Mnih et al. 2016; lectures 001, 003 (B11-B13).", "B11 B12 B13"),
        ("Claim (lectures 000, 001: B4 to B6), shown", "B4 B5 B6"),
        ("(lecture 000,\n    C6)", "C6"),
        ("Lecture D5 prints; the optimum (erratum H5), erratum H7", "D5 H5 H7"),
        ("see docs/lectures.md#b26 and lectures.md#h5", "B26 H5"),
        ("C51's projection (C51), A2C (A2C), an F1 score, H100 (H100), R(s, a)", ""),
    ],
)
def test_citations_are_told_from_other_names(text, items):
    assert cited(text) == set(items.split())


def test_adjacent_comments_are_read_as_one_and_code_is_not_read():
    source = "x = f(A1)  # see (lecture 000,\n# C6)\ny = ('F32', 'F16')\n"
    assert set().union(*map(cited, prose(source))) == {"C6"}


def test_every_item_that_the_code_cites_has_a_row():
    files = [path for room in ("jaxrl_align", "experiments") for path in sorted((ROOT / room).rglob("*.py"))]
    found = {
        (item, path.relative_to(ROOT).as_posix())
        for path in files
        for text in prose(path.read_text(encoding="utf-8"))
        for item in cited(text)
    }
    assert len({item for item, _ in found}) > 40
    assert sorted((item, path) for item, path in found if item not in WHERE) == []


def test_every_row_is_whole_and_has_an_anchor_of_its_own():
    assert len(WHERE) == len(ROWS) > 100
    assert {len(cells) for cells in ROWS} == {6}
    for (item, where), cells in zip(WHERE.items(), ROWS, strict=True):
        assert cells[0].strip() == f'<a id="{item.lower()}"></a>{item}'
        assert any(mark in where for mark in ("`", "not built yet", "nothing to build")), item
    assert set(re.findall(r"\]\(#([a-h]\d+)\)", PAGE)) <= {item.lower() for item in WHERE}


def test_what_the_rows_point_to_exists():
    named = [(item, name) for item, where in WHERE.items() for name in re.findall(r"`(.*?)`", where)]
    assert len(named) > 100
    assert [(item, name) for item, name in named if not exists(name)] == []


def test_what_is_built_is_named_in_its_tests():
    for item, where in WHERE.items():
        tests = re.findall(r"`(tests/.*?)`", TESTED[item])
        nothing = any(words in where for words in ("nothing to build", "not built yet"))
        assert bool(tests) != nothing, f"{item} has tests where nothing is built, or none where something is"
        names = "|".join(
            re.escape(name.removesuffix(".py").replace("/", ".").split(".")[-1])
            for name in re.findall(r"`(.*?)`", where)
        )
        named = (re.search(rf"\b({names})\b", (ROOT / test).read_text(encoding="utf-8")) for test in tests)
        assert nothing or any(named), f"{item}: none of {tests} names any of {names}"


def test_a_name_that_is_gone_is_seen():
    assert exists("losses.gae") and exists("losses.returns.gae") and exists("experiments/rlhf.py")
    assert not any(map(exists, ["losses.gea", "loses.gae", "losses.returns.gae.x", "experiments/none.py"]))
