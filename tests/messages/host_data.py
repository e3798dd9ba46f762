"""Bad batches and rows of host data."""

import gzip
import tempfile
from pathlib import Path

import numpy as np

from jaxrl_align import data

BATCHES = data.HostBatches(8, lambda *asked: asked)
HOME = tempfile.TemporaryDirectory()


def lines(content, name="rows.jsonl"):
    """Find the rows of a file with this content."""
    path = Path(HOME.name) / name
    path.write_bytes(content)
    return data.open_jsonl(path)


def stream(**change):
    """Stream a file of one row."""
    return data.stream_jsonl(lines(b'{"id": 1}'), dict, **{"batch_size": 2, "seed": 0} | change)


CASES = {
    f"rows of a batch: {rows}": (
        lambda rows=rows: BATCHES(0, 1, rows=rows),
        ValueError,
        rf"rows must be a slice with 0 <= .* batch_size=8; got slice\({rows.start}, .*larger",
    )
    for rows in (slice(0, 9), slice(4, 4), slice(5, 4), slice(-1, 8), slice(0, 8, 2), slice(8, None))
} | {
    "batches of no rows": (lambda: stream(batch_size=0), ValueError, "batch_size must be at least 1; got 0"),
    "windows of no rows": (
        lambda: data.stream_rows(np.arange(9), batch_size=0, length=2, seed=0),
        ValueError,
        "batch_size must be at least 1; got 0",
    ),
    "a stream's seed": (lambda: stream(seed=-1), ValueError, "seed must be at least 0; got -1"),
    "an order's seed": (
        lambda: data.shuffled_rows([0], num_rows=3, seed=-1),
        ValueError,
        "seed must be at least 0 .* got seed=-1, num_rows=3",
    ),
    "an order of nothing": (lambda: data.shuffled_rows([0], num_rows=0, seed=1), ValueError, "num_rows=0"),
    "rows beyond the last": (lambda: lines(b"{}").read([0, 1], dict), ValueError, "from 0 to 0; got 0 to 1"),
    "rows before the first": (lambda: lines(b"{}").read([-1], dict), ValueError, "from 0 to 0; got -1 to -1"),
    "lines: none": (lambda: lines(b"\n \n"), ValueError, "must hold a row; .*rows.jsonl holds none; write"),
    "lines: no file": (lambda: data.open_jsonl([]), ValueError, "must hold a row; no file is named; write"),
    "lines: a missing file": (
        lambda: data.open_jsonl("no.jsonl"),
        ValueError,
        "found none at no.jsonl; check",
    ),
    "lines: a folder": (
        lambda: data.open_jsonl(HOME.name),
        ValueError,
        "must be in a JSONL file; found none",
    ),
    "lines: compressed": (
        lambda: lines(b"{}", "rows.jsonl.gz"),
        ValueError,
        "rows.jsonl.gz is compressed, and rows cannot be sought in it; unpack it with gunzip",
    ),
    "lines: compressed, without saying so": (
        lambda: lines(gzip.compress(b"{}")),
        ValueError,
        "rows.jsonl is compressed",
    ),
}
