import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jaxrl_align.atomic import atomic_path
from jaxrl_align.runtime.folder import open_run, to_json, write_json


@dataclasses.dataclass(frozen=True)
class Inner:
    clip: float = 0.2


@dataclasses.dataclass(frozen=True)
class Config:
    out: Path = Path("runs/a")
    widths: tuple[int, ...] = (64, 64)
    inner: Inner = Inner()
    rate: float = np.float32(0.5)
    resume: bool = False


def test_config_is_written_as_json(tmp_path):
    folder = open_run(tmp_path / "deep" / "run", Config())
    expected = {"out": "runs/a", "widths": [64, 64], "inner": {"clip": 0.2}, "rate": 0.5, "resume": False}
    assert json.loads((folder.path / "config.json").read_text()) == expected == folder.config


def test_a_folder_with_a_run_is_refused_and_left_alone(tmp_path):
    open_run(tmp_path, Config())
    before = (tmp_path / "config.json").read_bytes()
    message = "already holds a run; pass --resume to continue it, or --out with a new folder"
    with pytest.raises(ValueError, match=message):
        open_run(tmp_path, Config(rate=0.1))
    assert (tmp_path / "config.json").read_bytes() == before


def test_resume_compares_all_but_out_and_resume(tmp_path):
    open_run(tmp_path, Config())
    folder = open_run(tmp_path, Config(out=Path("moved"), resume=True), resume=True)
    assert folder.resume and folder.config["resume"] is True
    message = (
        r"was made with widths=\[64, 64\], inner.clip=0.2, but this run has widths=\[32\], inner.clip=0.1;"
    )
    with pytest.raises(ValueError, match=message):
        open_run(tmp_path, Config(widths=(32,), inner=Inner(0.1)), resume=True)
    with pytest.raises(ValueError, match="was made with no depth, but this run has depth=2"):
        open_run(tmp_path, to_json(Config()) | {"depth": 2}, resume=True)


def test_resume_where_nothing_lies_starts_a_run(tmp_path):
    assert open_run(tmp_path / "new", Config(), resume=True).path.is_dir()


def test_stages_follow_the_same_rules(tmp_path):
    stage = open_run(tmp_path, Config()).sub("pretrain")
    assert stage.path == tmp_path / "pretrain" and (stage.path / "config.json").exists()
    with pytest.raises(ValueError, match="pretrain already holds a run"):
        dataclasses.replace(stage, path=tmp_path).sub("pretrain")
    assert open_run(tmp_path, Config(), resume=True).sub("pretrain").resume


def test_unusable_places(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="expected a folder, got the file"):
        open_run(tmp_path / "file", {})
    (tmp_path / "config.json").write_text("{torn")
    with pytest.raises(ValueError, match="cannot read .*config.json .*; pass --out with a new folder"):
        open_run(tmp_path, {}, resume=True)


def test_a_value_without_json_is_named():
    with pytest.raises(ValueError, match="expected a value that JSON can hold, got .* of function"):
        to_json({"f": lambda: 0})


def test_an_error_names_the_file_and_not_its_temporary(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/result.json'$"):
        write_json(tmp_path / "none" / "result.json", {})


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
