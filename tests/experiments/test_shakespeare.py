import json

import numpy as np
import pytest

from jaxrl_align.runtime import Interval
from tests.experiments.loading import load

shakespeare = load("shakespeare")


@pytest.mark.slow
def test_shakespeare_in_miniature(tmp_path):
    """On a text of its own: figure, result, and the loss of a text that is easy to predict falls."""
    corpus = tmp_path / "text.txt"
    corpus.write_text("abcd " * 400)
    shape = {"layers": 1, "heads": 2, "width": 16, "context": 8, "batch_size": 8, "steps": 60}
    shakespeare.main(
        shakespeare.Config(
            corpus=str(corpus),
            seeds=2,
            tuning_seeds=1,
            warmup_steps=5,
            learning_rates=(1e-5, 1e-2),
            published_rate=1e-4,
            out=str(tmp_path / "run"),
            **shape,
        )
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    found, tried = result["tables"].values()
    # The better rate is taken; ln 5 = 1.609 for five equal characters.
    assert list(found) == ["chosen, rate 0.01", "published, rate 0.0001"]
    assert tried["0.01"]["mean"] < tried["1e-05"]["mean"]
    chosen, published = (row["nats a character"]["value"] for row in found.values())
    assert chosen < 0.5 < 1 < published
    assert list(result["checks"].values()) == [False, True, True]
    first = found["chosen, rate 0.01"]
    assert first["bits a byte"]["value"] == pytest.approx(chosen / np.log(2))
    assert first["perplexity"]["value"] == pytest.approx(np.exp(chosen))
    assert result["headline"]["loss with the chosen rate [nats a character]"] == first["nats a character"]
    paired = result["baselines"]["the chosen one's less that, paired"]
    assert paired["value"] == pytest.approx(chosen - published)
    assert (tmp_path / "run" / "loss.png").stat().st_size > 5_000


def test_the_verdict_compares_with_what_is_stated_and_in_pairs():
    near = lambda value, half: Interval(value, value - half, value + half, "t")
    judge = lambda *x: list(shakespeare.judge(*x).values())
    assert judge(near(1.77, 0.03), near(1.89, 0.02), near(-0.12, 0.05)) == [True] * 3
    assert judge(near(1.87, 0.03), near(1.92, 0.02), near(-0.04, 0.05)) == [False] * 3
    assert judge(near(1.77, 0.03), near(1.84, 0.02), near(0.12, 0.05)) == [False, True, False]


def test_the_text_is_cut_in_its_order(tmp_path):
    (tmp_path / "text.txt").write_text("a" * 81 + "b" * 9 + "é" * 10)
    size, parts, bytes_a_token = shakespeare.read_parts(shakespeare.Config(corpus=str(tmp_path / "text.txt")))
    assert size == 5 and [len(part) for part in parts] == [81, 9, 10] and bytes_a_token == 2
    assert all(len(set(part.tolist())) == 1 for part in parts)
