"""Metrics for other programs, here stand-ins that keep what they are given."""

import sys
import types

import numpy as np
import pytest

from jaxrl_align.runtime import open_run
from jaxrl_align.runtime.writers import open_writers, write_history


@pytest.fixture
def given(monkeypatch):
    """What the two packages were called with."""
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append(("open", folder, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((step, name, value))

        def flush(self):
            pass

        def close(self):
            calls.append("closed")

    def init(**settings):
        calls.append(settings)
        return types.SimpleNamespace(
            log=lambda metrics, step: calls.append((step, metrics)), finish=lambda: calls.append("finished")
        )

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return calls


def test_tensorboard_gets_every_finite_number_at_its_step(given, tmp_path):
    folder = open_run(tmp_path, {"a": 1})
    writer = open_writers(["tensorboard"], folder, 4)
    history = {"loss": np.array([1.0, np.nan]), "members": np.ones((2, 3)), "kl": np.array([2.0, 3.0])}
    write_history(writer, 6, history)
    writer.close()
    opened = ("open", str(tmp_path / "tensorboard"), 5)
    assert given == [opened, (5, "loss", 1.0), (5, "kl", 2.0), (6, "kl", 3.0), "closed"]


def test_wandb_gets_the_configuration_and_a_name_that_stays(given, tmp_path):
    for resume in (False, True):
        folder = open_run(tmp_path, {"a": 1}, resume=resume)
        writer = open_writers(["wandb", "wandb"], folder)
        writer.write(1, {"loss": 0.5})
        writer.close()
    first, logged, finished, again, *_ = given
    assert logged == (1, {"loss": 0.5}) and finished == "finished"
    assert first["config"] == {"a": 1} and first["resume"] == "allow" and first["id"] == again["id"]


def test_no_writer_writes_nothing_and_a_missing_package_names_its_extra(tmp_path, monkeypatch):
    folder = open_run(tmp_path, {})
    writer = open_writers([], folder)
    writer.write(1, {"loss": 0.5})
    writer.close()
    for package, name in {"tensorboardX": "tensorboard", "wandb": "wandb"}.items():
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf"needs {package}; pip install 'jaxrl-align\[{name}\]'"):
            open_writers([name], folder)
    with pytest.raises(ValueError, match="writers must be of tensorboard, wandb; got csv"):
        open_writers(["csv"], folder)
