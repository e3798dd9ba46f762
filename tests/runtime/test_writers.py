"""Metrics for other programs, here stand-ins that keep what they are given."""

import sys
import types

import numpy as np
import pytest

from jaxrl_align.runtime import open_run
from jaxrl_align.runtime.folder import KeepConfig, Upkeep
from jaxrl_align.runtime.loop import run
from jaxrl_align.runtime.writers import open_writers, write_history


@pytest.fixture
def given(monkeypatch):
    """What the three packages were called with."""
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

    class MlflowClient:
        def __init__(self, tracking_uri):
            calls.append(tracking_uri)

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return f"number of {name}"

        def create_run(self, experiment, run_name):
            calls.append((experiment, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

        def log_param(self, *param):
            calls.append(param)

        def log_batch(self, run, metrics):
            calls.append((run, [(m[0], m[1], m[3]) for m in metrics]))

        def set_terminated(self, run):
            calls.append(f"ended {run}")

    entities = types.SimpleNamespace(Metric=lambda *fields: fields)
    mlflow = types.SimpleNamespace(MlflowClient=MlflowClient, entities=entities)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return calls


def test_tensorboard_gets_every_finite_number_at_its_step(given, tmp_path):
    folder = open_run(tmp_path, {"a": 1})
    writer = open_writers(["tensorboard"], folder, 4)
    history = {
        "loss": np.array([1.0, np.nan]),
        "members": np.array([[1.0, 2.0, 6.0], [np.nan, 4.0, np.inf]]),
        "kl": np.array([2, 3]),
    }
    write_history([writer], 6, history)
    writer.close()
    opened = ("open", str(tmp_path / "tensorboard"), 5)
    first = [(5, "loss", 1.0), (5, "members", 3.0), (5, "kl", 2.0)]
    assert given == [opened, *first, (6, "members", 4.0), (6, "kl", 3.0), "closed"]


def test_mlflow_keeps_its_files_and_its_run_in_the_folder(given, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for resume in (False, True):
        folder = open_run(tmp_path, {"a": 1, "long": "x" * 900}, resume=resume)
        writer = open_writers(["mlflow"], folder)
        writer.write(3, {"policy/kl@2": 0.5})
        writer.close()
    place = f"sqlite:///{tmp_path / 'mlflow.db'}"
    begun = [("number of jaxrl-align", tmp_path.name), ("r1", "a", "1"), ("r1", "long", "x" * 500)]
    logged = [("r1", [("policy/kl_2", 0.5, 3)]), "ended r1"]
    assert given == [place, *begun, *logged, place, *logged]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    open_writers(["mlflow"], folder)
    assert given[-1] == "http://there"


class Kept:
    """A writer of one's own."""

    def __init__(self):
        self.rows = []

    def write(self, step, metrics):
        self.rows.append((step, dict(metrics)))


def count(state):
    return state + 1, {"loss": state, "odd": np.array([1.0, 3.0]) + state}


def test_a_loop_writes_to_what_it_is_given_and_to_what_its_folder_names(given, tmp_path):
    own = Kept()
    run(count, np.float32(0), 3, chunk=2, progress=False, writers=[own])
    assert own.rows == [(i + 1, {"loss": i, "odd": 2.0 + i}) for i in range(3)]
    upkeep = KeepConfig(writers=("tensorboard",)).upkeep()
    assert upkeep == Upkeep(writers=("tensorboard",))
    for steps, seen in ((2, [1, 2]), (3, [3])):
        given.clear()
        folder = open_run(tmp_path / "run", {}, resume=True, upkeep=upkeep)
        run(count, np.float32(0), steps, folder=folder, progress=False)
        assert given[0] == ("open", str(tmp_path / "run" / "tensorboard"), seen[0])
        assert given[-1] == "closed" and [row[0] for row in given[1:-1]] == [s for s in seen for _ in "ab"]
        del folder
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_named_writers_are_closed_when_a_run_fails(given, tmp_path):
    folder = open_run(tmp_path, {}, upkeep=Upkeep(writers=("tensorboard",)))
    with pytest.raises(FloatingPointError):
        run(lambda x: (x, {"loss": x / 0}), np.float32(1), 2, folder=folder, progress=False)
    assert given[-1] == "closed"


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
    for package, name in {"tensorboardX": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}.items():
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf"needs {package}; pip install 'jaxrl-align\[{name}\]'"):
            open_writers([name], folder)
    with pytest.raises(ValueError, match="writers must be of tensorboard, wandb, mlflow; got csv"):
        open_writers(["csv"], folder)
