import json

import pytest

from tests.experiments.loading import load


@pytest.mark.slow
def test_shakespeare_in_miniature(tmp_path):
    """On a text of its own: figure, result, and the loss of a text that is easy to predict falls."""
    experiment = load("shakespeare")
    corpus = tmp_path / "text.txt"
    corpus.write_text("abcd " * 400)
    experiment.main(
        experiment.Config(
            corpus=str(corpus),
            seeds=2,
            layers=1,
            heads=2,
            width=16,
            context=8,
            batch_size=8,
            steps=60,
            warmup_steps=5,
            learning_rate=1e-2,
            out=str(tmp_path / "run"),
        )
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["loss"]) == 2 and max(result["loss"]) < 0.5 < 1.609  # ln 5 for five equal characters
    assert (tmp_path / "run" / "loss.png").stat().st_size > 5_000
