"""The chain of estimators in miniature: it runs to its figure, and each link does what the lecture says."""

import dataclasses
import json

import numpy as np
import pytest

from jaxrl_align.runtime import Interval

from .loading import load


@pytest.fixture(scope="module")
def experiment():
    return load("variance_reduction")


@pytest.mark.slow
def test_the_chain_lowers_the_variance_and_is_drawn(experiment, tmp_path, capsys):
    config = experiment.Config(seeds=4, paths=2000, horizon=8, states=3, actions=2, out=str(tmp_path / "run"))
    experiment.main(config)
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    found = [json.loads((tmp_path / "run" / f"process_{i}.json").read_text()) for i in range(4)]
    variance, bias = np.moveaxis(np.array(found), 1, 0)
    (table,) = result["tables"].values()
    assert variance.shape == bias.shape == (4, len(table)) == (4, 7)
    ratio = np.exp(np.log(variance[:, 1:] / variance[:, :-1]).mean(axis=0))
    assert np.all(ratio < 1.1) and np.prod(ratio) < 0.3
    np.testing.assert_allclose([row[experiment.LAST]["value"] for row in list(table.values())[1:]], ratio)
    assert [x["value"] for x in result["headline"].values()] == [pytest.approx(np.prod(ratio))]
    # An unbiased mean of 2000 paths is off by its variance / 2000; five times that is beyond chance.
    assert np.all(bias[:, :2] < 5 * variance[:, :2] / 2000)
    noise = np.exp(np.log(2000 * bias / variance).mean(0))
    np.testing.assert_allclose([row[experiment.NOISE]["value"] for row in table.values()], noise)
    added = np.exp(np.log(bias[:, 2] / bias[:, 1]).mean())
    assert table["discount"][experiment.ADDED]["value"] == pytest.approx(added)
    assert (tmp_path / "run" / "variance_reduction.png").stat().st_size > 5_000
    (tmp_path / "run" / "process_3.json").unlink()  # as if interrupted in the last process
    experiment.main(dataclasses.replace(config, resume=True))
    again = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert again | {"run": None} == result | {"run": None}


def test_the_verdict_is_that_of_the_chain(experiment):
    """Every step lowers the variance, the discount and bootstrapping bring bias; then one change at once."""
    near = lambda value: Interval(value, value - 0.2, value + 0.2, "t")
    names = [name.replace("\n", " ") for name in experiment.make_chain(experiment.Config())]
    noise, added = (1, 1, 5, 5, 5, 9, 9), (1, 1, 5, 0.8, 0.8, 2, 2)

    def judged(place=None, column=None, value=None):
        table = {
            name: {experiment.LAST: near(0.5), experiment.NOISE: near(x), experiment.ADDED: near(y)}
            for name, x, y in zip(names, noise, added, strict=True)
        }
        if column:
            table[names[place]][column] = near(value)
        return list(experiment.judge(table).values())

    assert judged() == [True] * 10
    fails = [(i, experiment.LAST, 0.9, i - 1) for i in range(1, 7)]
    fails += [(0, experiment.NOISE, 1.9, 6), (1, experiment.NOISE, 1.9, 6), (2, experiment.NOISE, 2.1, 7)]
    fails += [(3, experiment.ADDED, 1, 8), (4, experiment.ADDED, 1, 8)]
    fails += [(5, experiment.ADDED, 1.1, 9), (6, experiment.ADDED, 1.1, 9)]
    for place, column, value, check in fails:
        assert judged(place, column, value) == [True] * check + [False] + [True] * (9 - check)


def test_one_seed_gives_no_interval(experiment, tmp_path):
    with pytest.raises(ValueError, match="seeds must be at least 2"):
        experiment.main(experiment.Config(seeds=1, out=str(tmp_path / "run")))
