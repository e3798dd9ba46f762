import hashlib
import time

import pytest

from jaxrl_align.data import books
from jaxrl_align.data.books import childrens_books, hold_out_first, passages, read_books, strip_credits
from jaxrl_align.data.files import DATA_VARIABLE

HEADER = "Project Gutenberg's A Book, by Somebody\n\nTitle: A Book\n\n"
FOOTER = (
    "\n\n\nEnd of Project Gutenberg's A Book, by Somebody\n\n*** END OF THIS PROJECT GUTENBERG EBOOK ***\n"
)


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        (HEADER + "*** START OF THIS PROJECT GUTENBERG EBOOK A BOOK ***\n\n\n", FOOTER),
        (
            HEADER + "*** START OF THIS PROJECT GUTENBERG EBOOK A BOOK ***\n\nProduced by A. N. Other\n\n",
            FOOTER,
        ),
        (
            HEADER + "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n",
            "\n\n\n*Project Gutenberg Etext of A Book, by Somebody*\n\n",
        ),
        (
            HEADER + "*** START OF THE PROJECT GUTENBERG EBOOK ***\n",
            "\nEnd of the Project Gutenberg EBook of A\n",
        ),
        ("", "\n"),
    ],
)
def test_credits_go_and_the_book_stays(head, tail):
    book = 'ONE\n\nIt was produced by hand.\n  "The end of the road."\n\nTHE END'
    assert strip_credits(head + book + tail) == book


@pytest.mark.parametrize(
    "text",
    ["\n" * 10**6, "*** START OF TH" * 10**5, "*END*THE SMALL PRINT!*END*x" * 10**5, "\n End of " * 10**5],
)
def test_credits_are_sought_in_linear_time(text):
    start = time.process_time()
    assert strip_credits(text) == text.strip()
    assert time.process_time() - start < 1.0


def test_the_first_header_and_the_first_footer_count():
    mark = "*** START OF THIS ***"
    assert strip_credits(f"x {mark} y\n{mark}\na\n{mark}\nb") == f"a\n{mark}\nb"
    small = "*END*THE SMALL PRINT! x*END*"
    assert strip_credits(f"{small}\na\n{mark}\nb") == f"a\n{mark}\nb"
    assert strip_credits(f"{mark}\na\n{small}\nb") == f"a\n{small}\nb"
    assert strip_credits("Produced by A\nb") == "Produced by A\nb"
    assert strip_credits("End of Project Gutenberg\na\n \t End of the Project Gutenberg\nb") == (
        "End of Project Gutenberg\na"
    )


def write(folder, author, title, text):
    (folder / author).mkdir(parents=True, exist_ok=True)
    (folder / author / f"{title}.txt").write_text("title " * books.TITLE_WORDS + text)


def test_a_folder_of_ones_own_and_its_split_by_whole_books(tmp_path):
    for author, title in [("b", "two"), ("b", "one"), ("a", "z"), ("a", "y"), ("a", "x"), ("c", "alone")]:
        write(tmp_path, author, title, f"{author} {title} said  so\n")
    library = read_books(tmp_path)
    assert library["a"]["x"] == ["a", "x", "said", "so"] and list(library["a"]) == ["x", "y", "z"]
    train, test, others = hold_out_first(library)
    assert {a: list(b) for a, b in train.items()} == {"a": ["y", "z"], "b": ["two"]}
    assert {a: list(b) for a, b in test.items()} == {"a": ["x"], "b": ["one"]}
    assert list(others) == ["c"] and list(others["c"]) == ["alone"]


def test_passages_keep_within_a_book_and_lose_its_layout():
    two = {"x": ["a", "b", "c", "d", "e"], "y": ["f", "g"]}
    assert passages(two, 2) == ["a b", "c d", "f g"]
    assert passages(two, 9) == []
    with pytest.raises(ValueError, match="at least one word; got length=0"):
        passages(two, 0)


def test_folders_without_enough_books_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one folder per author, .*; found none below"):
        read_books(tmp_path)
    write(tmp_path, "a", "x", "")
    with pytest.raises(ValueError, match="more than 500 words, dropped as title pages; .*x.txt has not"):
        read_books(tmp_path)
    write(tmp_path, "a", "x", "text")
    with pytest.raises(ValueError, match="at least two authors must have two books.*'a': 1.*add books"):
        hold_out_first(read_books(tmp_path))


def test_the_childrens_books_come_from_the_data_folder_or_a_pinned_address(tmp_path, monkeypatch):
    """Every file is named once, its address has the commit, its checksum is one, and credits are cut."""
    seen = []

    def find(file):
        seen.append(file)
        path = tmp_path / hashlib.sha256(file.name.encode()).hexdigest()
        body = "word " * books.TITLE_WORDS + file.name
        path.write_text(HEADER + "*** START OF THIS PROJECT GUTENBERG EBOOK ***\n" + body + FOOTER)
        return path

    monkeypatch.setattr(books, "find_file", find)
    library = childrens_books()
    assert len({file.name for file in seen}) == len({file.url for file in seen}) == 23
    assert {len(file.sha256) for file in seen} == {64} and len({file.sha256 for file in seen}) == 23
    assert {author: len(titles) for author, titles in library.items()} == {
        **dict.fromkeys(["alcott", "burnett", "carroll", "macdonald", "stevenson"], 2),
        **dict.fromkeys(["baum", "grahame", "kipling", "nesbit"], 3),
        "barrie": 1,
    }
    assert library["barrie"]["Peter-Pan_16"] == ["text/childrens_books/barrie/Peter-Pan_16.txt"]
    (peter_pan,) = (file for file in seen if "barrie" in file.name)
    assert peter_pan.url.startswith("https://raw.githubusercontent.com/GITenberg/Peter-Pan_16/ab78bfda")
    assert peter_pan.url.endswith("/16.txt")


def test_without_the_books_the_message_says_how_to_provide_them(tmp_path, monkeypatch):
    pooch = pytest.importorskip("pooch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))

    def retrieve(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(FileNotFoundError, match="Little-Men_2788.txt is neither in .*name it in"):
        childrens_books()
