import json

import pytest

from jaxrl_align.data.files import DATA_VARIABLE
from jaxrl_align.data.tokens.tokenizers import byte_tokenizer
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from tests.data.test_blimp import write_blimp
from tests.experiments.loading import load

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
    """A model of a text with one kind of sentence prefers that kind."""
    probes = load("probes")
    corpus = data / "text.txt"
    people = ("bird", "girl", "boy", "cat", "dog", "cow")
    corpus.write_text("\n".join(f"The {x} sings a song." for x in people) * 20)
    probes.main(
        probes.Config(
            corpus=str(corpus),
            pairs=3,
            seeds=2,
            vocab_size=262,
            document=1,
            layers=1,
            heads=2,
            width=16,
            batch_size=8,
            steps=300,
            warmup_steps=5,
            learning_rate=1e-2,
            out=str(data / "run"),
        )
    )
    result = json.loads((data / "run" / "result.json").read_text())
    assert result["paradigms"] == ["agreement", "reversed"]
    assert result["blimp"]["after"] == [[1.0, 0.0]] * 2 and result["blimp"]["3-gram"] == [[1.0, 0.0]]
    # The wrong twins have fewer tokens: they lack an s, or stand in the order whose pieces were merged.
    assert result["blimp"]["shorter"] == [[0.0, 0.0]]
    assert all(len(row) == 7 for rows in result["places"].values() for row in rows)
    assert (data / "run" / "blimp.png").stat().st_size > 5_000
    assert "GPT-2 81.5" in capsys.readouterr().out


@pytest.mark.slow
def test_a_model_of_ones_own_is_asked(data):
    """Any Hugging Face folder: here a random GPT-2 that reads bytes."""
    pytest.importorskip("safetensors")
    import jax

    from jaxrl_align.runtime.huggingface import save_model

    probes = load("probes")
    config = TransformerConfig(258, width=8, layers=1, heads=1, context=256)
    params = jax.jit(make_transformer(config).init)(jax.random.key(0))
    save_model(data / "model", config, params, tokenizer=byte_tokenizer())
    probes.main(probes.Config(model=str(data / "model"), pairs=2, out=str(data / "run")))
    result = json.loads((data / "run" / "result.json").read_text())
    assert list(result["blimp"]) == list(result["places"]) + ["shorter"] == [str(data / "model"), "shorter"]
    assert len(result["blimp"][str(data / "model")][0]) == 2
