"""Every writer on a disk that is full after 300 bytes: an error names the file, and nothing half stays."""

import contextlib
import functools
import os
import resource
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import nets
from jaxrl_align.cli import serve
from jaxrl_align.cli.runs import cards, course
from jaxrl_align.cli.tuning import publish
from jaxrl_align.data import save_tokenizer, write_tokens
from jaxrl_align.runtime import checkpoint, plots
from jaxrl_align.runtime.folder import open_run
from jaxrl_align.runtime.huggingface import save_adapter, save_model
from jaxrl_align.runtime.loop import run
from jaxrl_align.runtime.metrics import append_metrics
from tests.cli.conftest import config, tokenizer
from tests.runtime.counting import count

LIMIT = 300
"""Bytes that a file may have: the kernel then fails the write as a full disk does."""


@contextlib.contextmanager
def full_disk():
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def write_model(folder):
    params = jax.jit(nets.make_transformer(config()).init)(jax.random.key(0))
    return lambda: save_model(folder / "model", config(), params, stop_tokens=[1], tokenizer=tokenizer())


def write_adapter(folder):
    params = jax.jit(nets.make_transformer(config()).init)(jax.random.key(0))
    part, constants = nets.init_lora(jax.random.key(1), params, rank=2, targets=["*query"])
    frozen = nets.overlay(params, constants)
    return lambda: save_adapter(folder / "adapter", config(), frozen, part, base_name="tiny")


def write_samples(folder):
    run = open_run(folder / "run", {})
    watch = course.Watch.__new__(course.Watch)
    watch._folder, watch._steps, watch.rows, watch.held_out = run, 9, [], {}
    watch._course = SimpleNamespace(measure=None, samples=(["a" * 400], lambda params: ["b"]))
    return lambda: watch.look(1, {})


def write_card(folder):
    card = cards.Card("m" * 400, "a model", "base", {}, {}, "loss", ["dpo"])
    outcome = course.Outcome({}, 1, {"loss": np.zeros(1)}, {}, [])

    def write(staged):
        staged.mkdir()
        cards.write_card(staged, card, outcome, 1.0)

    return lambda: publish(folder, write)


def write_figure(folder):
    curves = {"a": (np.arange(3), np.zeros((3, 2)))}
    return lambda: plots.save_curves(folder / "curve.png", "x", "y", curves)


WRITERS = {
    "metrics.jsonl": lambda f: lambda: append_metrics(f / "metrics.jsonl", 0, {"loss": np.zeros(99)}),
    "result.json": lambda f: functools.partial(open_run(f / "run", {}).write_json, "result.json", ["x"] * 99),
    "checkpoint_000000003.npz": lambda f: lambda: checkpoint.save(f, 3, jnp.zeros(99), {}),
    "tokens.npy": lambda f: lambda: write_tokens(f / "tokens.npy", [[1] * 999], vocab_size=9),
    "tokenizer.json": lambda f: lambda: save_tokenizer(f, tokenizer()),
    "rows.jsonl": lambda f: lambda: serve.write_rows(str(f / "rows.jsonl"), [{"a": "b"}] * 99),
    "curve.png": write_figure,
    "model": write_model,
    "adapter": write_adapter,
    "samples.jsonl": write_samples,
    "README.md": write_card,
}


@pytest.mark.parametrize("name", WRITERS)
def test_an_error_names_the_file_and_nothing_half_written_stays(name, tmp_path):
    write = WRITERS[name](tmp_path)
    with pytest.raises(OSError) as error, full_disk():
        write()
    assert name in str(error.value) and "\n" not in str(error.value)
    assert "File too large" in str(error.value) or "os error 27" in str(error.value)
    left = [path for path in tmp_path.rglob("*") if path.name.startswith(".") and path.name != ".lock"]
    assert not left
    appended = name == "metrics.jsonl"  # what a continued run repairs
    assert appended or not [path for path in tmp_path.rglob(name) if path.is_dir() or path.stat().st_size]
    write()
    assert [path for path in tmp_path.rglob(name)]


def test_a_run_folder_survives_a_full_disk_with_its_name(tmp_path, monkeypatch):
    folder = open_run(tmp_path, {})

    def full(file, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="checkpoint_000000002.npz.*No space left on device.*no checkpoint"):
        run(count, jnp.float32(0), 2, folder=folder, progress=False)
    with pytest.raises(OSError, match=r"No space left on device: '.*result.json'"):
        monkeypatch.setattr(os, "fsync", lambda file: full(file))
        folder.write_json("result.json", {"a": 1})
    assert not (tmp_path / "result.json").exists() and not list(tmp_path.glob(".result*"))
