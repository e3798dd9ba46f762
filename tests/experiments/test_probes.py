import json

import numpy as np
import pytest

from jaxrl_align.data.files import DATA_VARIABLE
from jaxrl_align.data.tokens.vocabularies import byte_tokenizer
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.runtime import Interval
from tests.data.test_blimp import write_blimp
from tests.experiments.loading import load

probes, reports = load("probes"), load("probes_report")
PAIRS = {
    "agreement": [(f"The {x} sings a song.", f"The {x} sing a song.") for x in ("bird", "girl", "boy")],
    "reversed": [(f"A song sings the {x}.", f"The {x} sings a song.") for x in ("bird", "girl", "boy")],
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    write_blimp(tmp_path / "data" / "glue" / "BLiMP.zip", PAIRS)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "data"))
    return tmp_path


@pytest.mark.slow
def test_probes_in_miniature(data, capsys):
    """A model of a text with one kind of sentence prefers that kind once it has read it often."""
    corpus = data / "text.txt"
    people = ("bird", "girl", "boy", "cat", "dog", "cow")
    corpus.write_text("\n".join(f"The {x} sings a song." for x in people) * 20)
    shape = {"vocab_size": 262, "layers": 1, "heads": 2, "widths": (8, 16)}
    how = {
        "epochs": (1, 240),
        "batch_size": 8,
        "warmup_steps": 5,
        "learning_rate": 1e-2,
        "document": 1,
        "every": 1,
    }
    out = str(data / "run")
    probes.main(probes.Config(corpus=str(corpus), pairs=3, seeds=2, out=out, **shape, **how))
    result = json.loads((data / "run" / "result.json").read_text())
    right, terms, ends, places, gaps, gains = result["tables"].values()
    trained = [f"width {w}, {e}" for w in (8, 16) for e in ("untrained", "1 epoch", "240 epochs")]
    assert list(right)[:8] == [*trained, "3-gram", "fewer tokens"]
    assert right["GPT-2, published"] == {"right": 81.5}
    assert right["width 16, 240 epochs"]["each seed"] == [50, 50]
    # The wrong twins have fewer tokens: they lack an s, or stand in the order whose pieces were merged.
    assert right["fewer tokens"]["right"]["value"] == 0
    assert right["3-gram"]["less fewer tokens"]["value"] == 50
    assert ends == {"agreement": {"right": 100}, "reversed": {"right": 0}}
    assert list(terms) == ["agreement", "reversed"] or len(terms) == 1
    assert list(places) == [*trained, "3-gram"] and len(gaps) == 7
    assert all(len(row[skill]) == 2 for who, row in places.items() for skill in gaps if who in trained)
    names = [
        "width 16, 240 epochs less 1",
        "width 16, 240 epochs less width 8",
        "width 16, 240 epochs less 3-gram",
    ]
    assert list(gains) == names and gains[names[2]]["gain"]["value"] == 0
    (headline,) = result["headline"].values()
    assert headline["value"] == 50 and result["figures"] == ["gain_by_epochs.png", "blimp.png"]
    for figure in result["figures"]:
        assert (data / "run" / figure).stat().st_size > 5_000


@pytest.mark.slow
def test_a_model_of_ones_own_is_asked(data):
    """Any Hugging Face folder: here a random GPT-2 that reads bytes."""
    pytest.importorskip("safetensors")
    import jax

    from jaxrl_align.runtime.huggingface import save_model

    config = TransformerConfig(258, width=8, layers=1, heads=1, context=256)
    params = jax.jit(make_transformer(config).init)(jax.random.key(0))
    save_model(data / "model", config, params, tokenizer=byte_tokenizer())
    probes.main(probes.Config(model=str(data / "model"), pairs=2, out=str(data / "run")))
    result = json.loads((data / "run" / "result.json").read_text())
    right, _, _, places, _ = result["tables"].values()
    assert list(right)[:2] == ["the model", "fewer tokens"] and list(places) == ["the model"]
    assert len(right["the model"]["each seed"]) == 1 and len(result["checks"]) == 3
    assert "--model" in result["run"]["command"] and result["run"]["seeds"] == 1


def test_a_share_of_the_documents_is_read(tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(f"It is {i}." for i in range(12)))
    read = lambda every: probes.read_documents(
        probes.Config(corpus=str(tmp_path / "text.txt"), every=every, document=2)
    )
    assert read(1) == [f"It is {i}. It is {i + 1}." for i in range(0, 12, 2)]
    assert read(3) == ["It is 0. It is 1.", "It is 6. It is 7."]


def make_answers():
    right = {"a": [[1.0, 0.5, 0.0], [0.5, 0.5, 0.0]], "b": [[0.5, 0.0, 1.0]], "fewer tokens": [[0.5] * 3]}
    right = {who: np.array(x) for who, x in right.items()}
    return reports.Answers(["p", "q", "r"], ["t", "t", "s"], right, {}, "a", [])


def test_differences_are_paired_by_paradigm():
    """Of members the mean is taken first: the units are the three paradigms."""
    answers = make_answers()
    gain = reports.difference(answers, "a", "b")
    assert gain.value == pytest.approx(100 * (0.25 + 0.5 - 1.0) / 3)
    assert (gain.low, gain.high, gain.kind) == (-100, 50, "bootstrap")
    found = reports.by_phenomenon(answers)
    assert found["a"].tolist() == [0, 0.625] and found["b"].tolist() == [1, 0.25]


def test_gaps_are_counted_by_their_expected_word():
    one = reports.share_first(np.array([[1, 2, 1, 5]]))
    assert (one.value, one.kind) == (0.5, "wilson")
    two = reports.share_first(np.array([[1, 2], [1, 3]]))
    assert (two.value, two.low, two.high, two.kind) == (0.5, 0, 1, "range")


def test_the_verdicts_read_the_intervals():
    near = lambda value: Interval(value, value - 1, value + 1, "bootstrap")
    first = lambda low: Interval(0.5, low, 0.9, "bootstrap")
    judged = lambda *x: list(reports.judge_trained(*x).values())
    up, down = near(2), near(0.5)
    assert judged(up, up, [up, up], up, first(0.3)) == [True] * 5
    assert judged(down, up, [up, down], up, first(0.1)) == [False, True, False, True, False]
    assert judged(up, down, [up], down, first(0.3)) == [True, False, True, False, True]
    judged = lambda *x: list(reports.judge_published(*x).values())
    assert judged(up, near(63), first(0.3)) == [True] * 3
    assert judged(down, near(62), first(0.1)) == [False] * 3
