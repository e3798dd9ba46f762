"""Readers of data: texts, images, token streams, and zips of sentences."""

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl_align.data.blimp import load_blimp
from jaxrl_align.data.books import TITLE_WORDS, passages, read_books
from jaxrl_align.data.corpora import paragraphs, read_text, sentences
from jaxrl_align.data.images import Split, load_idx_folder
from jaxrl_align.data.json_lines import open_jsonl, stream_jsonl
from jaxrl_align.data.labelled_texts import read_labelled
from jaxrl_align.data.tokens.streams import open_tokens, stream_rows, write_tokens
from jaxrl_align.feedback.sentiment import fit_sentiment
from tests.fuzz.readers import Reader

WORDS = "It was a dark, wet night. The fork lay on the table; nobody came!\n\nShe said: go. He went.\n"
VOCAB = 300


def pack_zip(members: dict[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip file of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def bomb(unit: bytes, millions: int = 500) -> bytes:
    """Return a gzip file that grows about a thousandfold."""
    return gzip.compress(unit * (10**6 // len(unit)), mtime=0) * millions


def _write_books(folder: Path) -> None:
    head, tail = (
        "*** START OF THIS PROJECT GUTENBERG EBOOK ***\n\nProduced by A. B.\n",
        "\n\nEnd of Project Gutenberg's\n",
    )
    for name in ("ann/one", "ann/two", "bob/one"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.txt").write_text(f"Title\n{head}{'word ' * TITLE_WORDS}{WORDS * 3}{tail}")


def _read_books(folder: Path) -> Any:
    library = read_books(folder)
    return library, [passages(books, 5) for books in library.values()]


def _no_words(found: Any) -> str | None:
    library, _ = found
    good = all(words and all(words) for books in library.values() for words in books.values())
    return None if good else "a book without words"


def _write_idx(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("t10k", 3)):
        pixels, labels = rng.integers(0, 256, (count, 4, 4), np.uint8), rng.integers(0, 10, count, np.uint8)
        images = bytes((0, 0, 8, 3)) + np.array(pixels.shape, ">i4").tobytes() + pixels.tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, mtime=0))
        classes = bytes((0, 0, 8, 1)) + np.array(labels.shape, ">i4").tobytes() + labels.tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(classes)


def _bad_images(split: Split) -> str | None:
    for images in split:
        if not (np.isfinite(images.x).all() and images.x.min() >= 0 and images.x.max() <= 1):
            return "pixels outside [0, 1]"
        if len(images.x) != len(images.y) or images.y.min() < 0 or images.y.max() > 9:
            return "labels that are none"
    return None


def _pair(name: str, good: Any, bad: Any) -> str:
    row = {
        "sentence_good": good,
        "sentence_bad": bad,
        "field": "syntax",
        "linguistics_term": "t",
        "UID": name,
    }
    return json.dumps(row) + "\n"


def _write_blimp(folder: Path) -> None:
    members = {f"data/{name}.jsonl": _pair(name, "A good é.", "Bad.") * 3 for name in ("one", "two")}
    (folder / "BLiMP.zip").write_bytes(pack_zip({**members, "data/.DS_Store": b"\xb0"}))


def _bad_pairs(paradigms: Any) -> str | None:
    for found in paradigms:
        texts = (found.name, found.field, found.term, *found.good, *found.bad)
        if not all(isinstance(text, str) and text.strip() for text in texts):
            return f"texts that are none: {texts!r:.80}"
        if len(found.good) != len(found.bad) or not found.good:
            return "sentences without a partner"
    return None


def _read_stream(folder: Path) -> Any:
    tokens = open_tokens(folder / "text.npy", vocab_size=VOCAB)
    if len(tokens) < 5:
        return np.asarray(tokens)
    return stream_rows(tokens, batch_size=3, length=4, seed=0)(0, 2)


def _bad_tokens(rows: np.ndarray) -> str | None:
    return (
        None if rows.dtype.kind in "iu" and rows.min() >= 0 and rows.max() < VOCAB else "tokens out of range"
    )


def _write_json_lines(folder: Path) -> None:
    rows = [json.dumps({"text": "word " * i, "more": [i, None]}) for i in range(1, 8)]
    (folder / "rows-0.jsonl").write_text("\n\n".join(rows[:4]))
    (folder / "rows-1.jsonl").write_text("\n".join(rows[4:]) + "\n")


def _read_json_lines(folder: Path) -> Any:
    lines = open_jsonl([folder / "rows-0.jsonl", folder / "rows-1.jsonl"])
    count = lambda fields: np.array([len(fields), len(fields["text"])])
    batches = stream_jsonl(lines, count, batch_size=4, seed=0)
    return lines.read(range(len(lines)), count), batches(0, 20), batches(0, 20, rows=slice(1, 3))


def _bad_lines(found: Any) -> str | None:
    rows, whole, part = found
    if not np.array_equal(whole[:, 1:3], part):
        return "a part of a batch that is not what the batch holds there"
    epoch, once = whole.reshape(-1, 2)[: len(rows)].tolist(), [row.tolist() for row in rows]
    return None if len(rows) > 80 or sorted(epoch) == sorted(once) else "an epoch that is not every row once"


def _npy(descr: str, shape: str, padding: int = 64) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(10 + len(header) + 1) % padding) + b"\n"
    body = b"\1\0" * 20
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + body


HEADERS = (
    *(
        ("'<u2'", shape)
        for shape in ("(True,)", f"({10**26},)", "(-1,)", f"({2**62},)", "('a',)", "20", "None")
    ),
    *(
        (descr, "(20,)")
        for descr in ("'|O'", "'float999'", "[('a', '<i4')]", "'|V2'", "None", "1", "'<f4'", "''")
    ),
    *(
        ("'<u2'", "(" * 150 + ")" * 150),
        ("'<f3'", "(20,)"),
        ("'<u2'", "(20,)" + " " * 20_000),
        ("'<u2'", "[" * 9_000),
        ("'<u2'", "9" * 5_000),
        ("\\x00", "(20,)"),
    ),
)


def _read_corpus(folder: Path) -> Any:
    return sentences(paragraphs(read_text(folder / "text.txt")))


def _bad_labels(found: Any) -> str | None:
    good = all(text.strip() for text in found.texts) and all(0 <= label < 2 for label in found.labels)
    return None if good and len(found.texts) == len(found.labels) else "a label or a text that is none"


def _read_sentiment(folder: Path) -> Any:
    labelled = read_labelled(folder / "stsa.txt", 2)
    if len(set(labelled.labels)) == 2:
        fit_sentiment(labelled.texts, labelled.labels)("not good")
    return labelled


READERS: tuple[Reader, ...] = (
    Reader(
        "books",
        _write_books,
        _read_books,
        _no_words,
        hostile=({"ann/one.txt": b"\n" * 75_000}, {"bob/one.txt": b"\xff\xfe"}, {"ann/two.txt": b"\0" * 9}),
    ),
    Reader("corpus", lambda folder: (folder / "text.txt").write_text(WORDS * 5), _read_corpus),
    Reader(
        "idx",
        _write_idx,
        load_idx_folder,
        _bad_images,
        hostile=(
            {"train-images-idx3-ubyte.gz": bomb(b"\0")},
            {"train-labels-idx1-ubyte": b"\0\0\x08\xff" + b"\xff" * 1020},
            {"train-labels-idx1-ubyte": b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"\0"},
            {"train-labels-idx1-ubyte": b"\0\0\x08\2" + b"\xff\xff\xff\xfe" * 2 + b"\0" * 4},
            {"t10k-images-idx3-ubyte.gz": gzip.compress(b"\0\0\x08\x03" + b"\x80\0\0\0" * 3)},
            {"t10k-images-idx3-ubyte.gz": gzip.compress(b"\0\0\x08\3\0\0\0\3" + b"\0" * 8)},
        ),
    ),
    Reader(
        "blimp",
        _write_blimp,
        lambda folder: load_blimp(folder / "BLiMP.zip"),
        _bad_pairs,
        hostile=tuple(
            {"BLiMP.zip": content}
            for content in (
                *(
                    pack_zip({"data/a.jsonl": _pair("a", *pair)})
                    for pair in ((1, "B."), ("A.", None), ("", "B."))
                ),
                pack_zip({"data/a.jsonl": "[" * 100_000}),
                pack_zip({"data/a.jsonl": _pair("a", "\ud800", "B.")}),
                pack_zip({"data/a.jsonl": _pair("a", "A.", "B."), "data/b.jsonl": b"\n" * 300_000_000}),
                pack_zip({"data/a.jsonl": _pair("a", "A.", "B.")}, zipfile.ZIP_LZMA)[:-200],
            )
        ),
    ),
    Reader(
        "tokens",
        lambda folder: write_tokens(folder / "text.npy", [range(VOCAB)], vocab_size=VOCAB),
        _read_stream,
        _bad_tokens,
        hostile=(
            *({"text.npy": _npy(*header)} for header in HEADERS),
            {"text.npy": _npy("'<u2'", "(20,)", padding=20_000)},
        ),
    ),
    Reader(
        "json lines",
        _write_json_lines,
        _read_json_lines,
        _bad_lines,
        hostile=tuple(
            {"rows-1.jsonl": data}
            for data in (
                *(b"\xff\n", b"[" * 100_000, b'{"a":' * 5_000, b"1" * 5_000, b"null\n" * 50_000),
                *(b"{}\n" * 50_000, b"\0" * 9, b'{"text": 7}', gzip.compress(b'{"text": "a"}\n', mtime=0)),
                b"\n" * 3_000_000 + b'{"text": NaN}',
            )
        ),
    ),
    Reader(
        "labelled",
        lambda folder: (folder / "stsa.txt").write_text("0 a dull film\n1 a good one , not dull\n" * 4),
        _read_sentiment,
        _bad_labels,
        hostile=tuple(
            {"stsa.txt": data} for data in (b"", b"\n", b"2 a", "\u0661 a".encode(), b"9" * 5_000 + b" a")
        ),
    ),
)
