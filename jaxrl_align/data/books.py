"""Children's books by author, as plain words, and the passages of a text."""

import re
from collections.abc import Mapping
from pathlib import Path

from jaxrl_align.data.corpora import read_text
from jaxrl_align.data.files import DataFile, find_file

TITLE_WORDS = 500
"""Dropped from every book's beginning, because title pages and dedications name people."""

Library = dict[str, dict[str, list[str]]]
"""Author -> title -> the book's words."""

_HEADS = (("*** START OF TH", "***"), ("*END*THE SMALL PRINT!", "*END*"))
"""What begins within the last line of a header, and what ends that line."""
_TAIL = re.compile(
    r"(?<=\n)[^\S\n]*(?:End of (?:the )?Project Gutenberg|\*Project Gutenberg Etext)",
)

_BOOKS = """
alcott Little-Men_2788
    d74bcefdef24ce28c6295899ce9eadf014ffe5d4
    d5cf3558f44690056289fc72fafa0df67abc1f14a69b2448e9cb3a144027e796
alcott Little-Women_514
    2b0c302d954a57cfa42c95d88ef053fd1b1aef55
    b20d98130841548c2137476e18fb1fe3bc7d666202985cafa09b5e02e54f7d7f
barrie Peter-Pan_16
    ab78bfda01b61a6649d5591e934d933e4856b460
    56a19f995da9bfb5f1cb6a780ade6355f666de3c74eddbc4591355df18eccb3c
baum Ozma-of-Oz_486
    464750b85f8552b44c38f8e0be426dba0fbd404e
    8363483af3b4c13501df617a41321f3535b19372ce63aaa2f6be8bb49ac8bc12
baum The-Marvelous-Land-of-Oz_54
    4b3fa2049e9b540472fa8acbed4297b8b778939c
    ed840664386fb16386a7e3e3a69ff6e2a9099a1cbb714a6eed4401205c5deb46
baum The-Wonderful-Wizard-of-Oz_55
    d19a4315b7c6f4471de8840a1a81609b34841dff
    18274f31ae11aea07ea9b4f707998636c6f75d784c60d7e8fea0b4d5c2d77af6
burnett Little-Lord-Fauntleroy_479
    6b74eb00141d43d7880de9fb4d6d62b714946386
    00287e0543efd96d7d36690851e60664f19e19cc7d89572cbd738e943d07a8b1
burnett The-Secret-Garden_113
    0031c0badd0d3fc83860c941d2f39d4aa345c51b
    5d5bd30cb79d2f9302d99f822cc342f268dcd327d800e0ba3790596b5ef09648
carroll Alice-s-Adventures-in-Wonderland_11
    7f18748e114b994d5d9454d5793581bc0b9cf9d7
    0f9ea0b148d553177962a25edd2f56d36342c22576a3253a127b4fbeffa5687d
carroll Through-the-Looking-Glass_12
    46dc9d18c6a61f94f15e9fb8977416c167fb3415
    437f45661617ec09cf765e0ba51b90664427c318f9273bd45b907c145f41798f
grahame Dream-Days_270
    847e9d121bc3f0811ea085215d66812d58e729c4
    e0417182447625d8dce844ef910b5773d5b8da000d188eb0e57d8b121c4d4809
grahame The-Golden-Age_291
    3a9947d6905ca0634393835ec0231ec9fe58ef06
    9726a11ecdb9b2bffa64d91968ee655f64aae643d686c78928ee6c7d126ed2e0
grahame The-Wind-in-the-Willows_289
    9032846214f647204585df2572cd19dd7fbc3c73
    04794195e8a2cff4f17166a4e9dcade01dca6b8b2b6e85cc1a8b7be1fe319e98
kipling Just-So-Stories_2781
    7bac330e58eb319627c16b125f0f9f05957b57b4
    51db0c5f18859b2dfe5af2d340de6fbc9736e35ed41ef7b200c2725eb03cf555
kipling The-Jungle-Book_236
    4176c01078ec4c3db938df1245bca1cd81db86d0
    e78970f1aa6734f575b0721616424b7253060df1d81f82c513f34ae07cca0282
kipling The-Second-Jungle-Book_1937
    45467f27b70b71ca9c9ef9b3e78c592dd40b9c94
    9da4c9bcf9f1ee695d8b4612ce82126d2e8498c40c65feab58ccc6dcfc26a6f6
macdonald The-Princess-and-Curdie_709
    a4da8193ca228ff8a6b2fc541d88604fb6249a3e
    343bf757a0f33e9556e56f0e03993c6a5ab4f7da561aac25bd0fa844d4b32cf0
macdonald The-Princess-and-the-Goblin_708
    7ed7090ace0c8b73b456c519358173364f17edda
    103c5634780f3aacb7cd2384335305b6fba46b52971516ae8801ffff5b6d2387
nesbit Five-Children-and-It_778
    402e5e4747cb41e1b10ff208d94d834dd4775fc2
    9675b40c709474b2f4353304aac824b57a4c7354d181c8871c0d597ef80174ac
nesbit The-Phoenix-and-the-Carpet_836
    baa817f4823ada76de2c3c1db97cfe23e8266d6c
    256c93992e9b804e13f596e1509113124bca428dee40c8d83dc80944d4b0f7f3
nesbit The-Railway-Children_1874
    cbde83dfe33b46bca9560b67a31b5cd98644bda5
    1c20d4df2affd9b230c9fcbb9fe10cfac825ba2585a8877d748c700425e0ff5c
stevenson Kidnapped_421
    9c8d81a8c5a780094821215c578e9ec0f33461fa
    94aa2a92a06287230c50e1ae9848fe920bf4f0f4a33467424a1890d985933795
stevenson Treasure-Island_120
    46f38f7b63dbda34415ce29ef5548023a8ba8dda
    6c37a18a886b4c12eaf4e5ff301813186616c7ee899c268db94eddd433027da7
"""
"""Author, title and number at Project Gutenberg, then commit and SHA-256 of its file at GITenberg."""


def strip_credits(text: str) -> str:
    """Return a Project Gutenberg text without its header, transcriber, footer and licence.

    A text that has none of these, such as one stripped before, is returned as it is but for white space at
    its ends.
    """
    ends = [end for mark in _HEADS if (end := _end_of_line(text, *mark))]
    body = text[min(ends, default=0) :]
    produced = body.lstrip()
    if ends and produced.startswith("Produced by ") and "\n" in produced:
        body = produced.partition("\n")[2]
    tail = _TAIL.search(body)
    return (body if tail is None else body[: tail.start()]).strip()


def _end_of_line(text: str, mark: str, ending: str) -> int:
    """Return where the first line that has the mark and then this ending is over, or 0 without one.

    A regular expression would read a line with many marks once for each of them.
    """
    start = text.find(mark)
    while start >= 0:
        end = text.find("\n", start)
        if end >= 0 and text.endswith(ending, start + len(mark), end):
            return end + 1
        start = text.find(mark, end) if end >= 0 else -1
    return 0


def childrens_books() -> Library:
    """Return 23 books by 10 authors, 1.36 million words in the public domain of the United States.

    Alcott, Barrie (one book alone), Baum, Burnett, Carroll, Grahame, Kipling, MacDonald, Nesbit, Stevenson.

    Raises:
      FileNotFoundError, ImportError: a book is nowhere and cannot be fetched; see `data.files.find_file`.
    """
    fields = _BOOKS.split()
    library: Library = {}
    for author, title, commit, sha256 in zip(*(fields[i::4] for i in range(4)), strict=True):
        url = f"https://raw.githubusercontent.com/GITenberg/{title}/{commit}/{title.rsplit('_', 1)[1]}.txt"
        path = find_file(DataFile(f"text/childrens_books/{author}/{title}.txt", url, sha256))
        library.setdefault(author, {})[title] = _read_words(path)
    return library


def read_books(folder: str | Path) -> Library:
    """Read a folder of one's own with one subfolder per author: `<author>/<title>.txt`, in UTF-8.

    Raises:
      ValueError: without any such file, or for one that is not text or not longer than the title pages.
    """
    found = sorted(Path(folder).glob("*/*.txt"))
    if not found:
        raise ValueError(
            f"the books must lie in one folder per author, <author>/<title>.txt; found none below {folder}"
        )
    library: Library = {}
    for path in found:
        library.setdefault(path.parent.name, {})[path.stem] = _read_words(path)
    return library


def _read_words(path: Path) -> list[str]:
    words = strip_credits(read_text(path)).split()[TITLE_WORDS:]
    if not words:
        raise ValueError(
            f"a book must have more than {TITLE_WORDS} words, dropped as title pages; {path} has not"
        )
    return words


def hold_out_first(library: Mapping[str, Mapping[str, list[str]]]) -> tuple[Library, Library, Library]:
    """Split a library by whole books, so that no test passage shares its book with a training passage.

    Returns:
      `(train, test, others)`: of every author with several books all but the first in the order of titles,
      and that first; then the authors who have one book alone.

    Raises:
      ValueError: unless at least two authors have two books.
    """
    train: Library = {}
    test: Library = {}
    others: Library = {}
    for author, books in library.items():
        titles = sorted(books)
        if len(titles) == 1:
            others[author] = dict(books)
            continue
        test[author] = {titles[0]: books[titles[0]]}
        train[author] = {title: books[title] for title in titles[1:]}
    if len(train) < 2:
        raise ValueError(
            f"at least two authors must have two books, one to learn from and one to be tested on; got "
            f"{ {author: len(books) for author, books in library.items()} }; add books"
        )
    return train, test, others


def passages(books: Mapping[str, list[str]], length: int) -> list[str]:
    """Cut books into consecutive passages of `length` words each, which one space separates.

    Line breaks, indents and double spaces go: they tell the transcriber, not the author. What is left at the
    end of a book is dropped.
    """
    if length < 1:
        raise ValueError(f"a passage must have at least one word; got length={length}")
    return [
        " ".join(words[i : i + length])
        for words in books.values()
        for i in range(0, len(words) - length + 1, length)
    ]
