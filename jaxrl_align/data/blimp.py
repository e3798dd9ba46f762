"""BLiMP: pairs of sentences that differ in one point of English grammar, one right and one wrong."""

import io
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl_align.data.files import DataFile, find_file, parse_json, unpack_members

BLIMP = DataFile(
    "glue/BLiMP.zip",
    "https://raw.githubusercontent.com/alexwarstadt/blimp/master/BLiMP.zip",
    "172a1a714d72e72a89e8384dd531483f3d0f8a9aee3d33dccaf7992d8cecbb73",
)

HUMAN_AGREEMENT = 0.964
"""Share of the pairs on which most of the people asked agree with the label (Warstadt et al. 2020)."""

PUBLISHED_ACCURACY = {
    "5-gram": 0.612,
    "LSTM": 0.698,
    "Transformer-XL": 0.696,
    "GPT-2": 0.815,
    "one person": 0.886,
}
"""The mean over the paradigms, by the whole sentence's probability, of the results that the authors publish
beside the data (branch check_results; Warstadt et al. 2020)."""


class Paradigm(NamedTuple):
    """The pairs that test one contrast."""

    name: str
    field: str
    """syntax, morphology, semantics, or two of them."""
    term: str
    """The phenomenon, one of 12."""
    good: tuple[str, ...]
    bad: tuple[str, ...]
    """`bad[i]` is the ungrammatical counterpart of `good[i]`."""


def load_blimp(path: str | Path | None = None) -> list[Paradigm]:
    """Read BLiMP (Warstadt et al. 2020, arXiv:1912.00582; CC BY 4.0): 67 paradigms of 1,000 pairs, by name.

    Args:
      path: the zip file; none means the data folder, the cache or a download.

    Raises:
      FileNotFoundError, ImportError: the file is nowhere and cannot be fetched; see `data.files.find_file`.
      ValueError: if it is no such zip.
    """
    path = find_file(BLIMP) if path is None else Path(path)
    wanted = lambda name: name.startswith("data/") and name.endswith(".jsonl")
    try:
        paradigms = [_paradigm(name, content) for name, content in unpack_members(path, wanted)]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} must be BLiMP's zip file; cannot read it: {error}") from error
    if not paradigms:
        raise ValueError(f"{path} must be BLiMP's zip file; it holds no data/*.jsonl")
    return paradigms


def _paradigm(name: str, content: bytearray) -> Paradigm:
    lines = enumerate(io.BytesIO(content), 1)
    rows = [_read_row(line, f"{name!r}:{number}") for number, line in lines if line.strip()]
    if not rows:
        raise ValueError(f"{name!r} must hold pairs of sentences; it is empty")
    good, bad = (tuple(row[f"sentence_{kind}"] for row in rows) for kind in ("good", "bad"))
    term = rows[0]["linguistics_term"]
    # The paper counts these two paradigms among the argument structures.
    term = "argument_structure" if term == "s-selection" else term
    return Paradigm(rows[0]["UID"], rows[0]["field"], term, good, bad)


def _read_row(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = parse_json(line.decode("utf-8"))
        for field in ("sentence_good", "sentence_bad", "linguistics_term", "UID", "field"):
            text = row.get(field) if isinstance(row, dict) else None
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{field} must be a text; got {text!r:.60}")
            text.encode()
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    return row
