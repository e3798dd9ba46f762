"""Models from and to Hugging Face folders; the expected answers come from `make_huggingface_fixtures`."""

import builtins
import dataclasses
import json
import os
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.data.tokens.tokenizer_files import save_tokenizer
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.data.tokens.vocabularies import character_tokenizer
from jaxrl_align.nets.quantize import quantise_params
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.nets.transformer_config import RopeScaling
from jaxrl_align.runtime.huggingface import (
    FAMILIES,
    load_model,
    load_reward_model,
    save_model,
    save_reward_model,
)
from jaxrl_align.runtime.huggingface.config import family_of, read_config, write_config
from jaxrl_align.runtime.huggingface.tensors import empty_params, from_tensor, tensor_shape, tensors_of
from tests.runtime.make_huggingface_fixtures import (
    FIXTURE,
    NEW_TOKENS,
    draw_tokens,
    draw_weights,
    our_scores,
    ours,
)

FIXTURES = json.loads(FIXTURE.read_text(encoding="utf-8"))
CASES = FIXTURES["cases"]
NAMES = tuple(CASES)


def save_file(tensors, path):
    """Write a safetensors file, or skip the test where the package is not installed."""
    pytest.importorskip("safetensors.numpy").save_file(tensors, str(path), metadata={"format": "pt"})


def load_file(path):
    return pytest.importorskip("safetensors.numpy").load_file(str(path))


def make_folder(path, name, tensors=None, **changes):
    """Write a case as a Hugging Face folder, with other tensors or entries of `config.json` where given."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CASES[name]["config"] | changes), encoding="utf-8")
    save_file(weights(name) if tensors is None else tensors, path / "model.safetensors")
    return path


def weights(name):
    return draw_weights({key: tuple(shape) for key, shape in CASES[name]["shapes"].items()})


def leaves(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(got, want):
    got, want = leaves(got), leaves(want)
    assert got.keys() == want.keys()
    for name, leaf in want.items():
        assert got[name].dtype == leaf.dtype
        np.testing.assert_array_equal(got[name], leaf, err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_greedy_tokens_equal_transformers(name, tmp_path):
    model = load_model(make_folder(tmp_path / "theirs", name))
    tokens = draw_tokens(CASES[name]["config"]["vocab_size"])
    logits, greedy = ours(model.config, model.params, tokens, NEW_TOKENS)
    expected = np.array(CASES[name]["logits"])
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    assert expected.std() > 1.0, "the comparison must not be between zeros"
    assert greedy == CASES[name]["greedy"]
    assert (model.config.dtype, model.stop_tokens) == ("float32", ())
    assert {leaf.dtype for leaf in leaves(model.params).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_loading_packs_each_kernel_as_it_is_read(name, tmp_path):
    """GPT-2's query, key and value share one tensor, that is not transposed."""
    folder = make_folder(tmp_path / "theirs", name)
    assert_same(load_model(folder, quantise="nf4").params, quantise_params(load_model(folder).params))


def test_a_model_never_stands_whole_to_be_packed(tmp_path):
    """NumPy's arrays, of which the float32 model would be one, at their peak."""
    config = TransformerConfig(64, width=128, layers=16, context=32)
    params = jax.tree.map(lambda x: 0.1 * np.ones(x.shape, np.float32), empty_params(config))
    folder = save_model(tmp_path / "model", config, params)
    load_model(folder, quantise="nf4")  # compiles
    tracemalloc.start()
    load_model(folder, quantise="nf4")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.3 * sum(x.nbytes for x in jax.tree.leaves(params))


@pytest.mark.parametrize("name", NAMES)
def test_what_was_loaded_is_saved_bit_for_bit(name, tmp_path):
    """The tensors that transformers wrote come back under their names, with their dtype and bits."""
    model = load_model(make_folder(tmp_path / "theirs", name))
    folder = save_model(tmp_path / "ours", model.config, model.params, stop_tokens=[3])
    with pytest.importorskip("safetensors").safe_open(
        folder / "model.safetensors", framework="numpy"
    ) as file:
        assert file.metadata() == {"format": "pt"}
        saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert_same(saved, weights(name))
    again = load_model(folder)
    assert_same(again.params, model.params)
    assert again.stop_tokens == (3,)
    assert family_of(again.config) == CASES[name]["config"]["model_type"]
    assert write_config(again.config, family_of(again.config)) == write_config(
        model.config, family_of(model.config)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_that_we_write_is_what_transformers_wrote(name):
    """An entry of the same name has the same value, but for a null and a default without effect."""
    theirs = dict(CASES[name]["config"])
    if "no_rope_layers" in theirs:  # may be longer than the layers
        theirs["no_rope_layers"] = theirs["no_rope_layers"][: theirs["num_hidden_layers"]]
    mine = write_config(read_config(theirs), theirs["model_type"])
    shared = mine.keys() & theirs.keys() - {"n_inner", "max_window_layers"}
    assert len(shared) >= 8
    assert {key: mine[key] for key in shared} == {key: theirs[key] for key in shared}


@pytest.mark.parametrize("version", FIXTURES["older"])
def test_what_older_versions_wrote_is_the_same_configuration(version):
    assert len(FIXTURES["older"][version]) >= 8
    for name, config in FIXTURES["older"][version].items():
        assert read_config(config) == read_config(CASES[name]["config"]), name
        scaling = config.get("rope_scaling")
        if scaling:  # before 4.45 the kind stood under another name
            scaling = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
            assert read_config(config | {"rope_scaling": scaling}) == read_config(config)


@pytest.mark.parametrize("name", NAMES)
def test_the_tensors_hold_every_parameter_once(name):
    config = read_config(CASES[name]["config"])
    params = jax.tree.map(np.zeros_like, empty_params(config))
    for tensor in tensors_of(config, FAMILIES[family_of(config)]):
        before = sum(leaf.sum() for leaf in leaves(params).values())
        shape = tensor_shape(tensor, params)
        from_tensor(tensor, np.ones(shape, np.float32), params)
        assert sum(leaf.sum() for leaf in leaves(params).values()) == before + np.prod(shape), tensor.name
    assert all((leaf == 1).all() for leaf in leaves(params).values())


def test_configurations_of_published_models():
    """GPT-2, Llama-3.2-1B, Qwen2.5-0.5B and Qwen3-0.6B, from the entries that their files state."""
    gpt2 = read_config(
        {"model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024}
        | {"vocab_size": 50257, "layer_norm_epsilon": 1e-05, "activation_function": "gelu_new"}
    )
    assert gpt2 == TransformerConfig(50257, 768, 12, 12, 1024)
    scaling = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3"}
    llama = read_config(
        {"model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192}
        | {"num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64}
        | {"max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0}
        | {"rope_scaling": scaling | {"original_max_position_embeddings": 8192}, "tie_word_embeddings": True}
    )
    assert llama.rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192) and llama.tied_head and llama.biased == ()
    qwen = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    qwen |= {"num_key_value_heads": 2, "max_position_embeddings": 32768, "vocab_size": 151936}
    qwen |= {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21}
    qwen2 = read_config(qwen | {"model_type": "qwen2"})
    assert (qwen2.window, qwen2.depth, qwen2.biased) == (None, 64, ("query", "key", "value"))
    assert not qwen2.tied_head
    qwen3 = read_config(qwen | {"model_type": "qwen3", "num_attention_heads": 16})
    assert (qwen3.depth, qwen3.query_key_norm, qwen3.biased) == (128, "head", ())
    windowed = read_config(qwen | {"model_type": "qwen2", "use_sliding_window": True})
    assert (windowed.window, windowed.window_layers) == (32768, (21, 22, 23))
    everywhere = read_config(
        qwen | {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0}
    )
    assert (everywhere.window, everywhere.window_layers) == (32768, None)


@pytest.mark.parametrize("shards", [1, 3])
def test_sharded_files_are_one_model(shards, tmp_path):
    tensors, names = weights("llama"), sorted(weights("llama"))
    folder = make_folder(tmp_path / "m", "llama")
    whole = load_model(folder)
    (folder / "model.safetensors").unlink()
    places = {name: f"part-{i % shards}.safetensors" for i, name in enumerate(names)}
    for part in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == part}, folder / part)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    assert_same(load_model(folder).params, whole.params)


def write_index(folder, places):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    text = places if isinstance(places, str) else json.dumps({"weight_map": places})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


EVERY = dict.fromkeys(CASES["qwen3"]["shapes"], "a.safetensors")


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ("{", "index.json is no JSON .*; download it again"),
        ("[]", "index.json must hold an object; got list"),
        ('{"weight_map": null}', "index.json is damaged .it has no weight_map.; download it again"),
        ({"x": 5}, "index.json: weight_map must be an object whose 'x' must be of type str"),
        (EVERY | {"x": "../b.safetensors"}, "files of its own folder; got '../b.safetensors'"),
        (EVERY | {"x": "b.bin"}, "must name safetensors files .*; got 'b.bin'"),
        (EVERY | {"x": "b.safetensors"}, "names b.safetensors, which is missing; download it too"),
        (EVERY | {"x": "a.safetensors"}, "its files disagree about x;"),
        (dict(list(EVERY.items())[1:]), "its files disagree about model.embed_tokens.weight;"),
    ],
)
def test_an_index_that_disagrees_with_its_files_is_refused(places, message, tmp_path):
    folder = make_folder(tmp_path / "m", "qwen3")
    write_index(folder, places)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_names_without_prefix_and_old_buffers_are_read(tmp_path):
    """GPT-2's published file: bare names, masks as buffers, in one case a copy of the tied head."""
    whole = load_model(make_folder(tmp_path / "a", "gpt2"))
    bare = {name.removeprefix("transformer."): x for name, x in weights("gpt2").items()}
    bare |= {
        "h.0.attn.bias": np.ones((1, 1, 64, 64), np.float32),
        "h.0.attn.masked_bias": np.ones((), np.float32),
    }
    assert_same(load_model(make_folder(tmp_path / "b", "gpt2", bare)).params, whole.params)
    tied = bare | {"lm_head.weight": bare["wte.weight"].copy()}
    assert_same(load_model(make_folder(tmp_path / "c", "gpt2", tied)).params, whole.params)
    other = bare | {"lm_head.weight": bare["wte.weight"] + 1}
    with pytest.raises(ValueError, match="tie_word_embeddings is true, but lm_head.weight differs"):
        load_model(make_folder(tmp_path / "d", "gpt2", other))
    twice = bare | {"transformer.wte.weight": bare["wte.weight"].copy()}
    with pytest.raises(ValueError, match="holds transformer.wte.weight twice, with and without"):
        load_model(make_folder(tmp_path / "e", "gpt2", twice))


def test_old_buffers_may_be_of_any_dtype_and_weights_may_not(tmp_path):
    """As transformers 4.28 saved GPT-2's masks."""
    whole = load_model(make_folder(tmp_path / "a", "gpt2"))
    for kind in (np.bool_, np.uint8):
        old = weights("gpt2") | {"transformer.h.0.attn.bias": np.ones((1, 1, 64, 64), kind)}
        assert_same(load_model(make_folder(tmp_path / kind.__name__, "gpt2", old)).params, whole.params)
    with pytest.raises(ValueError, match="attn.c_attn.bias in .* is of dtype BOOL; expected F32"):
        wrong = weights("gpt2") | {"transformer.h.0.attn.c_attn.bias": np.ones(48, np.bool_)}
        load_model(make_folder(tmp_path / "wrong", "gpt2", wrong))


LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize(
    ("newer", "older", "expected"),
    [
        ({}, {"type": "linear", "factor": 2.0}, 2.0),
        ({"rope_type": "default"}, LINEAR, 2.0),
        ({"rope_type": "default"}, None, None),
        (LINEAR, None, 2.0),
        (LINEAR, LINEAR, 2.0),
        (
            {"rope_type": "default"},
            {"rope_type": "yarn", "factor": 4.0},
            "of default, linear, llama3; got 'yarn'",
        ),
        (
            LINEAR,
            LINEAR | {"factor": 4.0},
            "must agree with rope_theta and rope_scaling; got factor 2.0 and 4.0; re",
        ),
        (LINEAR, {"type": "yarn"}, "got rope_type 'linear' and 'yarn'; remove the one that is wrong"),
        (LINEAR, {"rope_type": "default"}, "got rope_type 'linear' and 'default'"),
        ({"rope_theta": 100.0}, {"rope_theta": 50.0}, "got rope_theta 100.0 and 50.0"),
        ({"rope_theta": 100.0}, 50.0, "got rope_theta 100.0 and 50.0"),
    ],
)
def test_two_spellings_of_rope_agree_or_are_refused(name, newer, older, expected):
    """Who edits one of them is heard; a model card's advice to add `rope_scaling` is not lost."""
    config = CASES[name]["config"] | {"rope_parameters": newer, "rope_scaling": older}
    if name == "gemma3":
        config["rope_parameters"] = {"full_attention": newer}
    if isinstance(older, float):
        config |= {"rope_scaling": None, "rope_theta": older}
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            read_config(config)
    else:
        assert read_config(config).rope_scaling == (expected and RopeScaling(expected))


@pytest.mark.parametrize("name", NAMES)
def test_rope_is_written_once(name):
    written = write_config(read_config(CASES[name]["config"]), CASES[name]["config"]["model_type"])
    assert "rope_parameters" not in written
    assert ("rope_theta" in written) == ("rope_scaling" in written) == (name != "gpt2")


def test_a_local_base_in_two_spellings_agrees_too():
    config = CASES["gemma3"]["config"] | {"rope_local_base_freq": 60.0}
    with pytest.raises(ValueError, match="with rope_local_base_freq and .*; got rope_theta 50.0 and 60.0"):
        read_config(config)


CLASSIFIERS = FIXTURES["classifiers"]


def make_classifier(path, name, **changed):
    """Write a sequence classifier as transformers does."""
    tensors = draw_weights({key: tuple(shape) for key, shape in CLASSIFIERS[name]["shapes"].items()})
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CLASSIFIERS[name]["config"]), encoding="utf-8")
    save_file(tensors | changed, path / "model.safetensors")
    return path


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_sequence_classifier_is_a_reward_model(name, tmp_path):
    """With the scores that transformers gives whole texts, wherever they are padded."""
    folder = make_classifier(tmp_path / "m", name)
    model = load_reward_model(folder)
    tokens = draw_tokens(CLASSIFIERS[name]["config"]["vocab_size"])
    np.testing.assert_allclose(our_scores(model, tokens), CLASSIFIERS[name]["scores"], atol=1e-5)
    assert "int8" in load_reward_model(folder, quantise="int8").params["lm"]["layers"]["up"]["kernel"]
    assert np.abs(CLASSIFIERS[name]["scores"]).max() > 0.3
    assert model.params.keys() == {"lm", "head"}
    kind = CLASSIFIERS[name]["config"]["architectures"][0]
    with pytest.raises(
        ValueError, match=f"must hold a language model; got {kind}; read it with load_reward_m"
    ):
        load_model(folder)


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_a_reward_model_goes_out_and_comes_back_with_its_normalisation(name, tmp_path):
    """The gain is part of the head that transformers reads; the bias waits in config.json."""
    model = load_reward_model(make_classifier(tmp_path / "m", name))
    head = {"kernel": model.params["head"]["kernel"], "bias": jnp.float32(0.25)}
    params, tokens = {"lm": model.params["lm"], "head": head}, draw_tokens(model.config.vocab_size)
    options = {"gain": jnp.float32(2.0), "bias": -0.75, "pad_token": 3, "stop_tokens": [1]}
    folder = save_reward_model(tmp_path / "o", model.config, params, **options)
    back = load_reward_model(folder)
    assert back.stop_tokens == (1,) and float(back.params["head"]["bias"]) == 2 * 0.25 - 0.75
    np.testing.assert_allclose(our_scores(back, tokens), 2 * our_scores(model, tokens) - 0.25, atol=1e-5)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert values["architectures"] == CLASSIFIERS[name]["config"]["architectures"]
    assert values["pad_token_id"] == 3 and values["id2label"] == {"0": "reward"}
    stored, theirs = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "m"))
    assert stored.keys() == theirs.keys() - {"lm_head.weight"}
    np.testing.assert_array_equal(stored["score.weight"], 2 * theirs["score.weight"])


def test_a_head_over_words_is_no_part_of_a_reward_model(tmp_path):
    model = load_model(make_folder(tmp_path / "m", "llama"))
    assert "head" in model.params
    head = {"kernel": jnp.ones(model.config.width), "bias": jnp.zeros(())}
    folder = save_reward_model(tmp_path / "o", model.config, {"lm": model.params, "head": head}, pad_token=3)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    back = load_reward_model(folder)
    assert (
        "head" not in back.params["lm"] and back.params["lm"]["tokens"].shape == model.params["tokens"].shape
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": {"lm": {}}}, r"the head's kernel \[16\]; got the entries \['lm'\]"),
        ({"gain": float("nan")}, "the head must be finite; got gain=nan"),
        ({"pad_token": None}, r"pad_token must be .* ends no text; got None, stop tokens \[1\]"),
        ({"pad_token": 1}, r"got 1, stop tokens \[1\]; take one that texts do not hold"),
        ({"pad_token": 99}, "pad_token must be a token of the vocabulary"),
    ],
)
def test_what_no_classifier_can_hold_is_refused(change, message, tmp_path):
    model = load_reward_model(make_classifier(tmp_path / "m", "llama"))
    given = {"params": model.params, "pad_token": 3, "stop_tokens": [1]} | change
    with pytest.raises(ValueError, match=message):
        save_reward_model(tmp_path / "o", model.config, **given)
    assert not (tmp_path / "o").exists()


def test_what_is_no_reward_model_is_named(tmp_path):
    three = make_classifier(tmp_path / "m", "llama", **{"score.weight": np.ones((3, 16), np.float32)})
    with pytest.raises(ValueError, match=r"score.weight expected \(1, 16\), got \(3, 16\)"):
        load_reward_model(three)
    with pytest.raises(
        ValueError, match="must hold a sequence classifier; got LlamaForCausalLM; read it with l"
    ):
        load_reward_model(make_folder(tmp_path / "n", "llama"))


@pytest.mark.parametrize("load", [load_model, load_reward_model])
def test_a_peft_adapter_is_named(load, tmp_path):
    pytest.importorskip("safetensors")
    text = json.dumps({"base_model_name_or_path": "org/base", "peft_type": "LORA"})
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        ValueError,
        match="must hold a whole model; got a PEFT adapter of org/base; load that one, and lay over it",
    ):
        load(tmp_path)


def test_a_broken_template_and_a_missing_padding_token_prevent_nothing(tmp_path):
    """The error of a chat template comes when it is used; padding may be named by the caller."""
    folder = make_folder(tmp_path / "m", "qwen3")
    with pytest.raises(
        ValueError, match="pad_token needs a tokenizer; got 'a', but .* has no tokenizer.json"
    ):
        load_model(folder, pad_token="a")
    save_tokenizer(folder, Tokenizer(character_tokenizer("abc")._backend, {"eos_token": "<stop>"}))
    (folder / "chat_template.jinja").write_text("{% for %}", encoding="utf-8")
    tokenizer = load_model(folder).tokenizer
    assert (tokenizer.pad_token, tokenizer.stop_token) == (None, 1)
    with pytest.raises(ValueError, match="the chat template of .*m is no Jinja template"):
        tokenizer.encode_chat([{"role": "user", "content": "a"}])
    assert load_model(folder, pad_token="<stop>").tokenizer.pad_token == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_as_float32_exactly(dtype, tmp_path):
    half = {name: x.astype(jnp.dtype(dtype)) for name, x in weights("qwen3").items()}
    got = load_model(make_folder(tmp_path / "m", "qwen3", half)).params
    whole = {name: x.astype(np.float32) for name, x in half.items()}
    assert_same(got, load_model(make_folder(tmp_path / "n", "qwen3", whole)).params)


def test_bfloat16_parameters_are_saved_as_bfloat16(tmp_path):
    model = load_model(make_folder(tmp_path / "m", "llama"))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    folder = save_model(tmp_path / "half", model.config, half)
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    size = (folder / "model.safetensors").stat().st_size / (
        tmp_path / "m" / "model.safetensors"
    ).stat().st_size
    assert 0.5 <= size < 0.65
    assert_same(load_model(folder).params, jax.tree.map(lambda x: x.astype(jnp.float32), half))


@pytest.mark.parametrize(
    ("config", "tokens", "expected"),
    [(5, None, (5,)), ([5, 7], None, (5, 7)), (None, [3], (3,)), (5, 6, (6,)), (50256, None, ())],
)
def test_stop_tokens_may_be_one_or_many_in_either_file(config, tokens, expected, tmp_path):
    folder = make_folder(tmp_path / "m", "qwen3", eos_token_id=config)
    if tokens is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokens}), encoding="utf-8")
    assert load_model(folder).stop_tokens == expected


def change(name, **changed):
    """Return a case's tensors with some replaced; None takes one away."""
    tensors = weights(name) | {key.replace("__", "."): value for key, value in changed.items()}
    return {key: value for key, value in tensors.items() if value is not None}


NORM = "model__norm__weight"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({NORM: None}, "1 missing: model.norm.weight; take both from the same model"),
        ({"model__extra": np.ones(3, np.float32)}, "1 unexpected: model.extra"),
        ({"lm_head__bias": np.ones(3, np.float32)}, "1 unexpected: model.lm_head.bias"),
        ({NORM: np.ones(17, np.float32)}, r"model.norm.weight expected \(16,\), got \(17,\)"),
        ({NORM: np.ones((1, 16), np.float32)}, r"model.norm.weight expected \(16,\), got \(1, 16\)"),
        ({NORM: np.ones(16, np.int8)}, "model.norm.weight in .* is of dtype I8; expected F32, BF16, F16"),
        ({NORM: np.ones(16, np.float64)}, "model.norm.weight in .* is of dtype F64"),
        ({NORM: np.full(16, np.nan, np.float32)}, "model.norm.weight in .* holds 16 NaN or infinite values"),
        ({NORM: np.full(16, -np.inf, np.float32)}, "model.norm.weight in .* holds"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_model(make_folder(tmp_path / "m", "qwen3", change("qwen3", **changed)))


def test_an_untied_model_without_its_head_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 missing: lm_head.weight"):
        load_model(make_folder(tmp_path / "m", "llama", change("llama", lm_head__weight=None)))


@pytest.mark.parametrize("cut", [4, 100, 2000, -1])
def test_truncated_files_are_refused(cut, tmp_path):
    folder = make_folder(tmp_path / "m", "qwen3")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(
        ValueError, match="model.safetensors is truncated or no safetensors .*; download it again"
    ):
        load_model(folder)


@pytest.mark.parametrize(
    "changed",
    [
        {"num_hidden_layers": 9_999, "layer_types": None},
        {"num_hidden_layers": 300, "layer_types": None},
        {"vocab_size": 2**31 - 1},
        {"hidden_size": 2**30},
        {"intermediate_size": 2**31 - 1},
        {"num_attention_heads": 2**30, "head_dim": 2},
    ],
)
def test_sizes_that_no_file_holds_are_refused_before_anything_is_made(changed, tmp_path):
    folder = make_folder(tmp_path / "m", "qwen3", **changed)
    tracemalloc.start()
    with pytest.raises(ValueError, match="config.json: the configuration must describe the 6128 weights in "):
        load_model(folder)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_entries_are_checked_wherever_they_come_from():
    config = CASES["qwen3"]["config"]
    with pytest.raises(ValueError, match="^rms_norm_eps must be at least 0; got -1$"):
        read_config(config | {"rms_norm_eps": -1})
    assert type(read_config(config | {"rms_norm_eps": 1}).norm_epsilon) is float


def test_a_file_with_more_layers_than_its_own_is_refused_by_their_names(tmp_path):
    """Sizes that could be are compared tensor by tensor."""
    with pytest.raises(ValueError, match="missing: model.layers.2.input_layernorm.weight, "):
        load_model(make_folder(tmp_path / "m", "qwen3", num_hidden_layers=3, layer_types=None))


def test_pickled_weights_are_never_opened(tmp_path):
    folder = make_folder(tmp_path / "m", "qwen3")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds neither model.safetensors nor model.safetensors.index.json"):
        load_model(folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(
        ValueError, match=r"pickled weights \(pytorch_model.bin\).* never opened; have transform"
    ):
        load_model(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "config.json is missing; give the local folder"),
        ("{", "config.json is no JSON .*; download it again"),
        ("[1]", "config.json must hold an object; got list"),
        ('{"model_type": "mamba"}', "config.json: model_type must be one of gpt2, .*; got 'mamba'"),
        ("{}", "model_type must be one of gpt2, llama, qwen2, qwen3, .*; got None"),
    ],
)
def test_folders_without_a_configuration_are_refused(text, message, tmp_path):
    pytest.importorskip("safetensors")
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("gpt2", {"n_embd": None}, "n_embd is missing"),
        ("gpt2", {"n_layer": "2"}, "n_layer must be of type int; got '2'"),
        ("gpt2", {"n_head": 3}, "heads must divide width; got width=16, heads=3"),
        ("gpt2", {"activation_function": "relu"}, "must be gelu_new or gelu_pytorch_tanh; got 'relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must be False"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention must be False; got True"),
        (
            "llama",
            {"hidden_act": "gelu"},
            "hidden_act must be silu or swish; got 'gelu', which is not supported",
        ),
        ("llama", {"quantization_config": {"bits": 4}}, "quantised .*; load the unquantised model"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "one of default, linear, llama3; got 'yarn'"),
        ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "factor is missing"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor must be 1"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types must give each of 2 layers"),
        ("qwen2", {"layer_types": ["linear_attention"] * 2}, "layer_types must give each of 2 layers"),
        ("qwen2", {"use_sliding_window": False}, "sliding_window is unset"),
    ],
)
def test_configurations_that_are_not_supported_are_refused(name, changed, message):
    with pytest.raises(ValueError, match=message):
        read_config(CASES[name]["config"] | changed)


QWEN3 = read_config(CASES["qwen3"]["config"])


def ones(config):
    return jax.tree.map(np.ones_like, empty_params(config))


@pytest.mark.parametrize(
    ("config", "edit", "message"),
    [
        (dataclasses.replace(QWEN3, norm="layer"), {}, "no Hugging Face family .*qwen3 cannot hold norm"),
        (dataclasses.replace(QWEN3, residual=False), {}, "qwen3 cannot hold residual"),
        (
            dataclasses.replace(QWEN3, window=3, norm_placement="both"),
            {},
            "llama cannot hold .*window; .*qwen3 cannot hold norm_placement; .*olmo2 cannot hold",
        ),
        (QWEN3, {"tokens": None}, r"missing \[\"\['tokens'\]\"\], unexpected \[\]"),
        (QWEN3, {"head": np.ones((16, 40), np.float32)}, r"missing \[\], unexpected \[\"\['head'\]\"\]"),
        (
            QWEN3,
            {"tokens": np.ones((41, 16), np.float32)},
            r"tokens'\] must be of shape \(40, 16\); got \(41,",
        ),
        (QWEN3, {"tokens": np.full((40, 16), np.nan, np.float32)}, "holds NaN or infinite values"),
        (
            QWEN3,
            {"tokens": np.ones((40, 16), np.float16)},
            "all be float32 or all bfloat16; got float16, float32",
        ),
    ],
)
def test_models_that_cannot_be_saved_leave_nothing_behind(config, edit, message, tmp_path):
    pytest.importorskip("safetensors")
    params = {key: value for key, value in (ones(config) | edit).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        save_model(tmp_path / "m", config, params)
    assert list(tmp_path.iterdir()) == []


def test_stop_tokens_beyond_the_vocabulary_are_not_saved(tmp_path):
    pytest.importorskip("safetensors")
    with pytest.raises(ValueError, match=r"stop_tokens must lie in the vocabulary of 40; got \[40\]"):
        save_model(tmp_path / "m", QWEN3, ones(QWEN3), stop_tokens=[3, 40])


def test_a_tokenizer_travels_with_its_model_if_it_fits_the_embedding(tmp_path):
    folder = make_folder(tmp_path / "m", "qwen3")
    assert load_model(folder).tokenizer is None
    tokenizer = character_tokenizer("abcdefgh ")
    save_tokenizer(folder, tokenizer)
    model = load_model(folder)
    again = load_model(save_model(tmp_path / "n", model.config, model.params, tokenizer=model.tokenizer))
    for each in (model, again):
        assert each.tokenizer.encode("a bad cab") == tokenizer.encode("a bad cab")
        assert (each.tokenizer.pad_token, each.tokenizer.stop_token) == (0, 1)
    several = load_model(
        save_model(tmp_path / "several", model.config, model.params, stop_tokens=[5, 1], tokenizer=tokenizer)
    )
    assert several.tokenizer.stop_tokens == (1, 5) and several.tokenizer.with_pad(7).stop_tokens == (1, 5)
    assert json.loads((tmp_path / "n" / "config.json").read_text(encoding="utf-8"))["pad_token_id"] == 0
    large = character_tokenizer("".join(chr(97 + i) for i in range(39)))
    message = "the tokenizer has 41 tokens, but the embedding 40 rows; take both from the same model"
    with pytest.raises(ValueError, match=message):
        save_model(tmp_path / "o", model.config, model.params, tokenizer=large)
    assert not (tmp_path / "o").exists()
    save_tokenizer(folder, large)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_no_folder_is_overwritten(tmp_path):
    pytest.importorskip("safetensors")
    (tmp_path / "m").mkdir()
    save_model(tmp_path / "m", QWEN3, ones(QWEN3))
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    with pytest.raises(ValueError, match="m exists already; give a new name, or remove it"):
        save_model(tmp_path / "m", QWEN3, ones(QWEN3))
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_an_empty_folder_is_filled_and_stays(there, tmp_path):
    pytest.importorskip("safetensors")
    (tmp_path / "disk").mkdir()
    (tmp_path / "m").symlink_to(tmp_path / "disk" / "m")
    if there:
        (tmp_path / "disk" / "m").mkdir()
    save_model(tmp_path / "m", QWEN3, ones(QWEN3))
    assert (tmp_path / "m").is_symlink() and (tmp_path / "disk" / "m" / "config.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "m"}
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["m"]


def test_a_save_that_fails_halfway_leaves_nothing_behind(tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.numpy")

    def fail(tensors, path, metadata):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors, "save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        save_model(tmp_path / "m", QWEN3, ones(QWEN3))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def absent(name, *arguments, **keywords):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", absent)
    for name in [name for name in sys.modules if name.startswith("safetensors")]:
        monkeypatch.delitem(sys.modules, name)
    for use in (load_model, lambda folder: save_model(folder / "m", QWEN3, ones(QWEN3))):
        with pytest.raises(ImportError, match=r"pip install 'jaxrl-align\[hf\]'"):
            use(tmp_path)


def test_a_window_of_every_layer_is_the_window_of_all():
    listed = dataclasses.replace(QWEN3, window=4, window_layers=(0, 1))
    assert family_of(listed) == "qwen3"
    assert read_config(write_config(listed, "qwen3")) == dataclasses.replace(QWEN3, window=4)


def test_an_untied_gpt2_keeps_its_head(tmp_path):
    pytest.importorskip("safetensors")
    config = TransformerConfig(12, 8, 1, 2, 6, tied_head=False)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda x: draw.random(x.shape, np.float32), empty_params(config))
    again = load_model(save_model(tmp_path / "m", config, params))
    assert_same(again.params, params)
    assert not again.config.tied_head


def test_a_saved_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """And its weights are as readable as the rest, whatever the package that writes them thinks."""
    synced, named = set(), []
    real = os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: synced.add(os.fstat(handle).st_ino))
    monkeypatch.setattr(os, "replace", lambda *a: named.append(set(synced)) or real(*a))
    config = TransformerConfig(8, 8, 1, 1, 8)
    save_model(tmp_path / "m", config, make_transformer(config).init(jax.random.key(0)))
    files = list((tmp_path / "m").iterdir())
    assert {path.stat().st_ino for path in [*files, tmp_path / "m"]} <= named[-1]
    assert len({path.stat().st_mode for path in files}) == 1 and len(files) > 1
