import json

import numpy as np
import pytest

from jaxrl_align.data.images import Images, Split
from tests.experiments.loading import load

pytest.importorskip("sklearn")
SMALL = {"seeds": 2, "width": 4, "pretrain_epochs": 1, "batch_size": 200, "finetune_rates": (0.1,)}


@pytest.mark.slow
def test_layerwise_pretraining_in_miniature(tmp_path, capsys):
    """Every figure is written, and a resumed run keeps the depths that are done."""
    experiment = load("layerwise_pretraining")
    config = experiment.Config(depths=(1, 2), finetune_epochs=1, out=str(tmp_path / "run"), **SMALL)
    experiment.main(config)
    folder = tmp_path / "run"
    for name in ("test_error.png", "reconstructions.png", "filters.png"):
        assert (folder / name).stat().st_size > 5_000
    result = json.loads((folder / "depth_2.json").read_text())
    assert [len(row) for row in result["test"]] == [2, 2, 2]
    assert all(0 <= error <= 100 for row in result["test"] for error in row)
    assert len(result["reconstruction_loss"]) == 2
    written = (folder / "depth_1.json").stat().st_mtime_ns
    capsys.readouterr()
    experiment.main(experiment.Config(**vars(config) | {"resume": True}))
    assert (folder / "depth_1.json").stat().st_mtime_ns == written
    assert "test error" not in capsys.readouterr().out


@pytest.mark.slow
def test_tiny_labels_in_miniature(tmp_path):
    experiment = load("tiny_labels")
    config = experiment.Config(
        labels=(10,), depth=1, finetune_steps=2, out=str(tmp_path / "run"), era="modern", **SMALL
    )
    experiment.main(config)
    assert sorted(path.name for path in (tmp_path / "run").glob("labels_*.json")) == [
        "labels_10.json",
        "labels_1150.json",
    ]
    assert (tmp_path / "run" / "test_error.png").exists()


@pytest.mark.slow
def test_pretraining_sources_in_miniature(tmp_path, monkeypatch):
    """With blank images in place of MNIST's, which need a file."""
    pytest.importorskip("PIL")
    experiment = load("pretraining_source")
    blank = Images(np.zeros((60_000, 784), np.float32), np.zeros(60_000, np.int32))
    monkeypatch.setattr(experiment, "load_mnist", lambda: Split(blank, blank))
    config = experiment.Config(
        labels=(10,), depth=1, finetune_steps=2, out=str(tmp_path / "run"), era="modern", **SMALL
    )
    experiment.main(config)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [len(row) for row in result["test_error"]["10"]] == [2] * 5
    assert (tmp_path / "run" / "test_error.png").exists()


@pytest.mark.parametrize("labels", [(9,), (1151,)])
def test_tiny_labels_refuses_too_few_and_too_many(tmp_path, labels):
    experiment = load("tiny_labels")
    with pytest.raises(ValueError, match="from 10, one label per class, to 1150"):
        experiment.main(experiment.Config(labels=labels, out=str(tmp_path / "run"), **SMALL))
    assert not (tmp_path / "run").exists()
