"""GGUF files against the same weights in a Hugging Face folder; the slow tests ask the real model."""

import builtins
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.data.probes import CLOZE_PROBES
from jaxrl_align.evaluate.scoring.likelihood import encode_texts, make_scorer, rank_of
from jaxrl_align.nets.transformer import make_transformer
from jaxrl_align.nets.transformer_config import RopeScaling
from jaxrl_align.runtime.huggingface import find_model, import_gguf, load_gguf, load_model
from jaxrl_align.runtime.huggingface.config import family_of, write_config
from jaxrl_align.runtime.huggingface.gguf import ARCHITECTURES
from jaxrl_align.runtime.huggingface.gguf_tokenizer import SPLITTERS, read_tokenizer
from jaxrl_align.text.completion import make_completer
from jaxrl_align.text.generation import Filters
from tests.runtime.gguf_files import CONFIG, KINDS, TOKENS, metadata_of, shapes_of, write_gguf
from tests.runtime.make_huggingface_fixtures import NEW_TOKENS, draw_tokens, draw_weights, ours
from tests.runtime.test_huggingface import CASES, assert_same, make_folder, save_file, weights

ALL = {"use_sliding_window": False, "layer_types": ["full_attention"] * 2}
PLAIN = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
CHANGES = {"llama": PLAIN, "llama_biased": {}, "qwen2": ALL, "qwen3": {}}


@pytest.fixture(autouse=True, scope="module")
def gguf():
    return pytest.importorskip("gguf")


def as_written(config):
    return write_config(config, family_of(config))


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_is_the_model_of_its_folder(name, tmp_path):
    """To the bit: Llama's rows moved back, the others' left; tied and untied; with biases and without."""
    changes = CHANGES[name]
    config = CASES[name]["config"] | changes
    folder = load_model(make_folder(tmp_path / "folder", name, **changes))
    model = load_gguf(write_gguf(tmp_path / "m.gguf", config, weights(name)))
    assert_same(model.params, folder.params)
    assert as_written(model.config) == as_written(folder.config)
    assert model.config.tied_head == config["tie_word_embeddings"]
    assert {type(leaf) for leaf in jax.tree.leaves(model.params)} == {type(jnp.zeros(()))}
    if name == "llama_biased":  # what transformers says of the folder
        tokens = draw_tokens(config["vocab_size"])
        logits, greedy = ours(model.config, model.params, tokens, NEW_TOKENS)
        np.testing.assert_allclose(logits, CASES[name]["logits"], atol=2e-5)
        assert greedy == CASES[name]["greedy"]


def test_every_architecture_is_compared():
    assert {CASES[name]["config"]["model_type"] for name in CHANGES} == set(ARCHITECTURES)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_quantised_tensors_are_what_the_package_makes_of_them(gguf, kind, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxrl_align.runtime.huggingface.gguf._ROWS", 7)  # in several pieces
    tensors, raw = draw_weights(shapes_of(CONFIG)), gguf.GGMLQuantizationType[kind]
    kinds = {f"blk.{i}.{name}.weight": kind for i in range(2) for name in ("attn_q", "attn_k", "ffn_down")}
    path = write_gguf(tmp_path / "m.gguf", tensors=tensors, kinds=kinds | {"token_embd.weight": kind})
    names = ("q_proj", "k_proj", "down_proj", "embed_tokens")
    for name in [name for name in tensors if any(part in name for part in names)]:
        tensors[name] = gguf.dequantize(gguf.quantize(tensors[name], raw), raw)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    save_file(tensors, tmp_path / "folder" / "model.safetensors")
    expected = load_model(tmp_path / "folder").params
    assert_same(load_gguf(path).params, expected)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), expected)
    assert_same(load_gguf(path, dtype="bfloat16").params, rounded)


def test_what_llama_cpp_fills_in_may_be_missing(tmp_path):
    """Heads' width, key-value heads and the rotary base have defaults; a width may be stated thrice."""
    config = CONFIG | {"head_dim": 8, "num_key_value_heads": 4}
    named = ("attention.key_length", "attention.value_length", "attention.head_count_kv", "rope.freq_base")
    bare = write_gguf(tmp_path / "a.gguf", config, changed={f"llama.{name}": None for name in named})
    stated = {"llama.rope.dimension_count": 8, "llama.vocab_size": 40, "llama.rope.scaling.type": "none"}
    full = write_gguf(tmp_path / "b.gguf", config, changed=stated)
    assert load_gguf(bare).config == load_gguf(full).config
    assert (load_gguf(bare).config.rope_theta, load_gguf(bare).config.norm_epsilon) == (1e4, 1e-5)


def llama3_factors(theta, depth, factor):
    """Return what convert_hf_to_gguf.py writes for Llama 3.1 and later, `generate_extra_tensors`."""
    factors = []
    for frequency in 1.0 / theta ** (np.arange(0, depth, 2) / depth):
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_rope_scaling_of_llama_3_is_read_from_its_factors(factor, tmp_path):
    config = CONFIG | {"rope_theta": 5e5, "head_dim": 64}
    factors = llama3_factors(5e5, 64, factor)
    assert ((factors > 1) & (factors < factor)).any()
    path = write_gguf(tmp_path / "m.gguf", config, changed={"rope_freqs.weight": factors})
    assert load_gguf(path).config.rope_scaling == RopeScaling(factor, 1.0, 4.0, 8192)
    factors[-1] += 1
    path = write_gguf(tmp_path / "n.gguf", config, changed={"rope_freqs.weight": factors})
    with pytest.raises(ValueError, match="n.gguf: rope_freqs.weight must hold the rope scaling of Llama 3"):
        load_gguf(path)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = write_gguf(tmp_path / "m.gguf").read_bytes()
    for length in [0, 3, 4, 8, 23, *range(24, len(whole), 509), len(whole) - 64]:
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut.gguf is truncated or no GGUF file .*; download it again"):
            load_gguf(tmp_path / "cut.gguf")


def test_a_count_beyond_the_file_does_not_hang(tmp_path):
    whole = write_gguf(tmp_path / "m.gguf").read_bytes()
    where = whole.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 8
    count = int.from_bytes(whole[where : where + 8], "little")
    assert count == len(KINDS)
    (tmp_path / "m.gguf").write_bytes(whole[:where] + (2**60).to_bytes(8, "little") + whole[where + 8 :])
    with pytest.raises(ValueError, match="is truncated or no GGUF file"):
        load_gguf(tmp_path / "m.gguf")


def test_the_tokenizer_comes_from_the_metadata(tmp_path):
    tokenizer = load_gguf(write_gguf(tmp_path / "m.gguf")).tokenizer
    text = [TOKENS[i] for i in tokenizer.encode("ab a 12<tool>")]
    assert text == ["ab", "Ġa", "Ġ", "1", "2", "<tool>"], "smollm splits 12, user-defined tokens are whole"
    assert tokenizer.encode("<|end|>") == [TOKENS.index(c) for c in "end"], "text is text"
    assert (tokenizer.pad_token, tokenizer.stop_token, tokenizer.vocab_size) == (0, 0, 35)
    assert tokenizer.encode_chat([{"role": "user", "content": "ab<|end|>"}]) == [1, TOKENS.index("ab"), 0, 0]
    assert tokenizer.decode([1, *tokenizer.encode("ab a<tool>"), 0]) == "ab a<tool>"


@pytest.mark.parametrize(
    ("splitter", "stated", "expected"),
    [
        ("smollm", {}, ["ab"]),
        ("smollm", {"add_bos_token": True}, ["<|start|>", "ab"]),
        ("smollm", {"add_bos_token": True, "add_eos_token": True}, ["<|start|>", "ab", "<|end|>"]),
        ("smollm", {"add_eos_token": True}, ["ab", "<|end|>"]),
        ("llama-bpe", {}, ["<|start|>", "ab"]),
        ("llama-bpe", {"add_bos_token": False}, ["ab"]),
    ],
)
def test_bos_and_eos_stand_where_the_file_says(splitter, stated, expected):
    entries = metadata_of(CONFIG) | {f"tokenizer.ggml.{key}": value for key, value in stated.items()}
    tokenizer = read_tokenizer(entries | {"tokenizer.ggml.pre": splitter})
    assert [TOKENS[i] for i in tokenizer.encode("ab")] == expected
    assert [TOKENS[i] for i in tokenizer.encode("ab", special=False)] == ["ab"]


PIECES = {
    "gpt-2": ["It", "'s", "Ġ1234", "ĠDON", "'", "T", "!", "ĠĠ", "Ġx", "Â½", "ĊĊ"],
    "smollm": ["It", "'s", "Ġ", "1", "2", "3", "4", "ĠDON", "'", "T", "!", "ĠĠ", "Ġx", "Â½", "ĊĊ"],
    "llama-bpe": ["It", "'s", "Ġ", "123", "4", "ĠDON", "'T", "!", "ĠĠ", "Ġx", "Â½", "ĊĊ"],
    "qwen2": ["It", "'s", "Ġ", "1", "2", "3", "4", "ĠDON", "'T", "!", "ĠĠ", "Ġx", "Â½", "ĊĊ"],
}
"""By the regular expressions that llama.cpp's `llama-vocab.cpp` has for each name."""


@pytest.mark.parametrize("splitter", SPLITTERS)
def test_texts_are_split_as_the_name_says(splitter):
    """Seen through a vocabulary whose merges join all that is not split."""
    entries = metadata_of(CONFIG) | {"tokenizer.ggml.pre": splitter, "tokenizer.ggml.add_bos_token": False}
    words = {piece for pieces in PIECES.values() for piece in pieces}
    words = sorted(words, key=lambda word: (word[0] != "Ġ", word))
    steps = {word[: i + 1]: f"{word[:i]} {word[i]}" for word in words for i in range(1, len(word))}
    byte = sorted({character for word in words for character in word})
    tokens = [*byte, *steps]
    entries |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": list(steps.values())}
    tokenizer = read_tokenizer(entries | {"tokenizer.ggml.token_type": [1] * len(tokens)})
    got = [tokens[i] for i in tokenizer.encode("It's 1234 DON'T!   x½\n\n")]
    assert got == PIECES[splitter]


@pytest.mark.parametrize("splitter", SPLITTERS)
def test_llama_looks_words_up_before_merging_and_qwen_composes_characters(splitter):
    tokens = ["a", "b", "ab", "Ã", "©", "Ã©"]
    entries = metadata_of(CONFIG) | {"tokenizer.ggml.pre": splitter, "tokenizer.ggml.add_bos_token": False}
    entries |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * len(tokens)}
    tokenizer = read_tokenizer(entries | {"tokenizer.ggml.merges": ["Ã ©"]})
    assert tokenizer.encode("ab") == ([2] if splitter == "llama-bpe" else [0, 1])
    assert (tokenizer.encode("e\N{COMBINING ACUTE ACCENT}") == [5]) == (splitter == "qwen2")


def test_named_tokens_are_special_whatever_their_type():
    z, unused = TOKENS.index("z"), 39
    entries = {"tokenizer.ggml.eos_token_id": z, "tokenizer.ggml.padding_token_id": unused}
    tokenizer = read_tokenizer(metadata_of(CONFIG) | entries)
    assert (tokenizer.pad_token, tokenizer.stop_token, tokenizer.vocab_size) == (unused, z, 40)
    assert tokenizer.decode([TOKENS.index("ab"), z, unused]) == "ab"


def test_a_folder_is_written_whole_and_read_the_same(tmp_path):
    pytest.importorskip("safetensors")
    path = write_gguf(tmp_path / "m.gguf", changed={"tokenizer.ggml.eot_token_id": 1})
    folder = import_gguf(path, tmp_path / "new" / "m")
    model, again = load_gguf(path, dtype="bfloat16"), load_model(folder)
    assert_same(again.params, jax.tree.map(lambda x: x.astype(jnp.float32), model.params))
    assert again.config == model.config and again.stop_tokens == model.stop_tokens == (0, 1)
    assert set(model.tokenizer.stop_tokens) == {0, 1}
    assert again.tokenizer.encode("ab a 12") == model.tokenizer.encode("ab a 12")
    assert again.tokenizer.special == model.tokenizer.special
    assert again.tokenizer.chat_template.source == model.tokenizer.chat_template.source
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="m exists already; give a new name, or remove it"):
        import_gguf(tmp_path / "not looked at", folder)
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="truncated"):
        import_gguf(tmp_path / "cut.gguf", tmp_path / "other" / "m")
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["m"]
    assert not (tmp_path / "other").exists()


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def absent(name, *arguments, **keywords):
        if name == "gguf":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", absent)
    for name in [name for name in sys.modules if name.split(".")[0] == "gguf"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"gguf is not installed; pip install 'jaxrl-align\[gguf\]'"):
        load_gguf(tmp_path / "m.gguf")


def test_the_real_model_is_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXRL_ALIGN_MODEL", str(tmp_path))
    with pytest.raises(
        ValueError, match=f"{tmp_path} holds no model .*; make model, or name a folder in the"
    ):
        find_model()
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert find_model() == tmp_path


@pytest.mark.optimised
@pytest.mark.slow
def test_the_real_model_has_its_published_shape(real_model):
    config = real_model.config
    assert (config.layers, config.width, config.hidden, config.context) == (30, 576, 1536, 8192)
    assert (config.heads, config.kv_heads, config.depth) == (9, 3, 64)
    assert (config.vocab_size, config.tied_head, real_model.stop_tokens) == (49152, True, (2,))
    assert sum(leaf.size for leaf in jax.tree.leaves(real_model.params)) == 134_515_008


@pytest.mark.optimised
@pytest.mark.slow
def test_the_real_model_knows_the_capital_of_france(real_model):
    lm, question = make_transformer(real_model.config), "What is the capital of France?"
    greedy = make_completer(
        lm, response_length=12, stop_tokens=real_model.stop_tokens, filters=Filters(top_k=1)
    )
    message = [{"role": "user", "content": question}]
    prompt = real_model.tokenizer.encode_chat(message, add_generation_prompt=True)
    (answer,) = greedy(real_model.params, [prompt], jax.random.key(0))
    assert real_model.tokenizer.decode(answer.tokens) == "The capital of France is Paris."
    assert answer.stopped


@pytest.mark.optimised
@pytest.mark.slow
def test_the_real_model_finds_34_the_likeliest_after_13_and_21(real_model):
    """Among the probe's candidates; free to write anything, it goes on with 28."""
    probe = CLOZE_PROBES[-1]
    rows = encode_texts(real_model.tokenizer, probe.filled())
    scores = make_scorer(make_transformer(real_model.config), batch_size=5)(real_model.params, rows)
    assert probe.candidates[0] == "34" and rank_of(scores, 0) == 1
