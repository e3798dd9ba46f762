"""The chain of estimators in miniature: it runs to its figure, and each link does what the lecture says."""

import dataclasses
import json

import numpy as np
import pytest

from .loading import load


@pytest.fixture(scope="module")
def experiment():
    return load("variance_reduction")


@pytest.mark.slow
def test_the_chain_lowers_the_variance_and_is_drawn(experiment, tmp_path, capsys):
    config = experiment.Config(seeds=4, paths=2000, horizon=8, states=3, actions=2, out=str(tmp_path / "run"))
    experiment.main(config)
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    variance, bias = (np.array(result[name]) for name in ("variance", "squared_bias"))
    assert variance.shape == bias.shape == (4, len(result["estimators"])) == (4, 7)
    ratio = np.exp(np.log(variance[:, 1:] / variance[:, :-1]).mean(axis=0))
    assert np.all(ratio < 1.1) and np.prod(ratio) < 0.3
    # An unbiased mean of 2000 paths is off by its variance / 2000; five times that is beyond chance.
    assert np.all(bias[:, :2] < 5 * variance[:, :2] / 2000)
    assert (tmp_path / "run" / "variance_reduction.png").stat().st_size > 5_000
    assert "squared bias" in capsys.readouterr().out
    (tmp_path / "run" / "process_3.json").unlink()  # as if interrupted in the last process
    experiment.main(dataclasses.replace(config, resume=True))
    assert json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8")) == result


def test_one_seed_gives_no_interval(experiment, tmp_path):
    with pytest.raises(ValueError, match="seeds must be at least 2"):
        experiment.main(experiment.Config(seeds=1, out=str(tmp_path / "run")))
