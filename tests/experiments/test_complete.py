"""The script that completes prompts: streamed and batched text agree, and what is missing is named."""

import json

import jax
import pytest

from jaxrl_align.data.tokens.vocabularies import character_tokenizer
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.runtime.huggingface import save_model
from tests.experiments.loading import load
from tests.tiny import disturb


@pytest.fixture(scope="module")
def complete():
    return load("complete")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("safetensors")
    tokenizer = character_tokenizer("abcdefgh ")
    config = TransformerConfig(tokenizer.vocab_size, width=8, layers=1, heads=2, context=40)
    lm = make_transformer(config)
    params = disturb(lm.init(jax.random.key(0)), jax.random.key(1), 0.3)
    path = tmp_path_factory.mktemp("models") / "tiny"
    return save_model(path, config, params, tokenizer=tokenizer, stop_tokens=[1])


@pytest.mark.slow
def test_streamed_text_is_the_completed_text(complete, folder, capsys):
    config = complete.Config(model=str(folder), prompt="a bad cab", tokens=12, temperature=0.7, seed=3)
    complete.main(config)
    batched = capsys.readouterr().out.splitlines()
    complete.main(complete.Config(**vars(config) | {"stream": True}))
    streamed = capsys.readouterr().out.splitlines()
    assert batched[0].startswith("--- sample 1") and batched[1] == streamed[0]
    assert set(streamed[0]) <= set("abcdefgh ") and streamed[0]
    assert streamed[-1].split(" tokens")[0] == batched[-1].split(" tokens")[0] == f"[{len(streamed[0])}"


def test_what_cannot_be_completed_is_refused(complete, folder, tmp_path):
    with pytest.raises(ValueError, match="no chat template"):
        complete.main(complete.Config(str(folder), "a", chat=True))
    with pytest.raises(ValueError, match="samples must be at least 1, .* got 0"):
        complete.main(complete.Config(str(folder), "a", samples=0))
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        complete.main(complete.Config(str(bare), "a"))
    (bare / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    values = json.loads((bare / "config.json").read_text(encoding="utf-8")) | {"eos_token_id": None}
    (bare / "config.json").write_text(json.dumps(values), encoding="utf-8")
    for path in bare.glob("generation_config.json"):
        path.unlink()
    with pytest.raises(ValueError, match="names no token that ends a text"):
        complete.main(complete.Config(str(bare), "a"))
