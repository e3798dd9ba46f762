"""Readers of a run's folder: its configuration, metrics, checkpoints and notes."""

import functools
import gc
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.cli.runs import course
from jaxrl_align.runtime import checkpoint
from jaxrl_align.runtime.folder import Upkeep, open_run
from jaxrl_align.runtime.keeper import read_best
from jaxrl_align.runtime.loop import _check_frozen
from jaxrl_align.runtime.metrics import append_metrics, read_metrics, recover_metrics
from tests.fuzz.data_readers import pack_zip
from tests.fuzz.readers import Reader

CONFIG = {"width": 8, "rate": 1e-3, "name": "a", "inner": {"seeds": [1, 2]}}
KINDS = {"loss": np.zeros(2, np.float32), "episodes": np.zeros((), np.int32)}
STEPS = 4


@functools.cache
def make_state() -> Any:
    """Return a state; not before a worker has its process, since jax's threads are not forked."""
    weights = {
        "w": jnp.arange(6.0).reshape(2, 3),
        "half": jnp.ones(3, jnp.bfloat16),
        "none": jnp.zeros((0, 2)),
    }
    ends = jnp.array([True, False])
    return {"params": weights, "key": jax.random.key(3), "step": jnp.array(7), "ends": ends}


def _write_run(folder: Path) -> None:
    run = open_run(folder, CONFIG, upkeep=Upkeep(best="loss"))
    history = {"loss": np.ones((STEPS, 2), np.float32), "episodes": np.arange(STEPS, dtype=np.int32)}
    append_metrics(folder / "metrics.jsonl", 0, history)
    run.write_json("best.json", {"metric": "loss", "step": 2, "value": 1.0})
    run.write_json("frozen.json", checkpoint.fingerprint(make_state()["params"]))
    run.write_json(course.HELD_OUT_FILE, {"0": {"loss": 2.0}, "4": {"loss": 1.0}})
    (folder / course.SAMPLES_FILE).write_text('{"step": 4, "prompt": "a", "completion": "b"}\n')
    for step in (2, STEPS):
        (folder / f"checkpoint_{step:09d}.npz").write_bytes(b"")
    del run
    gc.collect()


def _read_run(folder: Path) -> Any:
    run = open_run(folder, CONFIG, resume=True)
    _check_frozen(run, make_state()["params"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = recover_metrics(folder / "metrics.jsonl", STEPS, KINDS)
        watch = course.Watch.__new__(course.Watch)
        watch._folder, watch._course = run, SimpleNamespace(measure=True, samples=True, judged_by="loss")
        watch._recall(STEPS)
    return history, read_best(run), watch.held_out, watch.rows


def _complain_run(value: Any) -> str | None:
    history, best, held_out, rows = value
    if {name: x.shape for name, x in history.items()} != {"loss": (STEPS, 2), "episodes": (STEPS,)}:
        return "the history is not of the run's shapes"
    if best is not None and not (best["step"] in (2, STEPS) and np.isfinite(best["value"])):
        return f"{best} is no checkpoint of this run"
    if any(type(step) is not int or step > STEPS for step in held_out):
        return "held-out metrics of no step"
    return None if all(type(row["step"]) is int for row in rows) else "samples of no step"


def _write_metrics(folder: Path) -> None:
    history = {"loss": np.ones((STEPS, 2), np.float32), "episodes": np.arange(STEPS, dtype=np.int32)}
    append_metrics(folder / "metrics.jsonl", 0, history)


def _complain_metrics(history: Any) -> str | None:
    kinds = {x.dtype.kind for x in history.values()}
    lengths = {len(x) for x in history.values()}
    return None if kinds <= set("biuf") and len(lengths) <= 1 else f"arrays of {kinds}, lengths {lengths}"


def _write_checkpoint(folder: Path) -> None:
    checkpoint.save(folder, 5, make_state(), CONFIG)


def _read_checkpoint(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return checkpoint.restore(folder, make_state(), CONFIG)


def _complain_checkpoint(value: Any) -> str | None:
    describe = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
    return (
        None if describe(value[0]) == describe(make_state()) else "leaves of other shapes than were expected"
    )


_HEADER = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
READERS = (
    Reader("run folder", _write_run, _read_run, _complain_run),
    Reader(
        "metrics",
        _write_metrics,
        lambda folder: read_metrics(folder / "metrics.jsonl"),
        _complain_metrics,
        hostile=(
            {"metrics.jsonl": b'{"step": 0, "loss": ' + b"[" * 100_000 + b"\n"},
            {"metrics.jsonl": b'{"step": 0, "loss": {"a": 1}}\n'},
            {"metrics.jsonl": b'{"step": 0, "loss": "\\ud800"}\n'},
            {"metrics.jsonl": b'{"step": 0, "loss": 1' + b"0" * 400 + b"}\n"},
        ),
    ),
    Reader(
        "checkpoint",
        _write_checkpoint,
        _read_checkpoint,
        _complain_checkpoint,
        hostile=tuple(
            {"checkpoint_000000005.npz": content}
            for content in (
                pack_zip({"__metadata__.npy": b"x" * 500_000}),
                pack_zip({"['step'].npy": (_HEADER % b"10**26,").ljust(128)}, method=0),
                pack_zip({"['step'].npy": (_HEADER % b"100000000000,").ljust(128)}, method=0),
                pack_zip({}),
            )
        ),
    ),
)
