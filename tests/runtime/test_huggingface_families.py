"""The records of Mistral, Gemma 3, SmolLM3 and OLMo 2: published files, defaults, refusals, the way back."""

import dataclasses
import json

import pytest

from jaxrl_align.nets.transformer import TransformerConfig
from jaxrl_align.nets.transformer_config import RopeScaling
from jaxrl_align.runtime.huggingface import FAMILIES
from jaxrl_align.runtime.huggingface.config import family_of, read_config, write_config
from jaxrl_align.runtime.huggingface.tensors import tensors_of
from tests.runtime.make_huggingface_fixtures import FIXTURE

CASES = json.loads(FIXTURE.read_text(encoding="utf-8"))["cases"]
CONFIGS = {name: case["config"] for name, case in CASES.items()}
MISTRAL, GEMMA3, SMOLLM3, OLMO2 = (
    read_config(CONFIGS[name]) for name in ("mistral", "gemma3", "smollm3", "olmo2")
)
SIZES = {"vocab_size": 40, "hidden_size": 64, "intermediate_size": 24, "num_hidden_layers": 12}
SIZES |= {"num_attention_heads": 32, "max_position_embeddings": 64}


def test_published_mistral():
    """Mistral-7B v0.1 has a window, v0.3 has null, which differs from no entry."""
    values = {"model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336}
    values |= {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    values |= {"max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 10000.0}
    values |= {"sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 32000}
    first = read_config(values)
    assert (first.window, first.window_layers, first.depth, first.biased) == (4096, None, 128, ())
    assert family_of(first) == "mistral"
    third = read_config(values | {"sliding_window": None, "rope_theta": 1e6, "vocab_size": 32768})
    assert (third.window, third.rope_theta) == (None, 1e6)
    assert family_of(third) == "llama", "without a window it is one"
    del values["sliding_window"]
    assert read_config(values) == first


def test_published_gemma3():
    """Gemma-3-1B as transformers 4.50 wrote it, with the scaling of the larger ones' text model."""
    values = {"model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "head_dim": 256}
    values |= {"num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1}
    values |= {"query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "vocab_size": 262144}
    values |= {"rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000}
    values |= {"sliding_window": 512, "sliding_window_pattern": 6, "max_position_embeddings": 32768}
    values |= {"attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": False}
    values |= {"hidden_activation": "gelu_pytorch_tanh"}
    small = read_config(values)
    everywhere = (5, 11, 17, 23)
    assert small == TransformerConfig(
        262144,
        1152,
        26,
        4,
        32768,
        positions="rotary",
        norm="offset_rms",
        norm_placement="both",
        feed_forward="geglu",
        biased=(),
        embedding_scale=1152**0.5,
        key_value_heads=1,
        head_width=256,
        feed_forward_width=6912,
        query_key_norm="head",
        norm_epsilon=1e-6,
        rope_theta=1e6,
        local_rope_theta=1e4,
        window=512,
        window_layers=tuple(i for i in range(26) if i not in everywhere),
    )
    assert write_config(small, "gemma3_text")["sliding_window_pattern"] == 6
    large = read_config(
        values
        | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "head_dim": 128}
        | {"query_pre_attn_scalar": 168}
    )
    assert (large.rope_scaling, large.local_rope_theta) == (RopeScaling(8.0), 1e4)
    assert read_config(values | {"rope_theta": 10000}).local_rope_theta is None, "the same base in all layers"
    assert large.scale == 168**-0.5 and small.scale == 1 / 16
    assert [family_of(c) for c in (small, large)] == ["gemma3_text"] * 2
    kept = {k: v for k, v in values.items() if not k.startswith(("rope", "sliding_window_", "query", "head"))}
    assert read_config(kept) == small, "what is missing has transformers' defaults"


def test_published_smollm3():
    values = {"model_type": "smollm3", "hidden_size": 2048, "intermediate_size": 11008, "vocab_size": 128256}
    values |= {"num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4}
    values |= {"max_position_embeddings": 65536, "rope_theta": 5000000.0, "rms_norm_eps": 1e-06}
    values |= {"no_rope_layers": [1, 1, 1, 0] * 9, "layer_types": ["full_attention"] * 36}
    values |= {"use_sliding_window": False, "sliding_window": None, "hidden_act": "silu"}
    got = read_config(values)
    assert got.rotary_layers == tuple(i for i in range(36) if i % 4 != 3)
    assert (got.window, got.tied_head, got.rope_theta, got.biased) == (None, True, 5e6, ())
    assert family_of(got) == "smollm3"
    by_default = read_config({k: v for k, v in values.items() if k not in ("no_rope_layers", "layer_types")})
    assert by_default == got, "every fourth layer has none"
    windowed = {"use_sliding_window": True, "sliding_window": 8, "layer_types": None}
    assert read_config(values | windowed).window_layers == (3, 7, 11, 15, 19, 23, 27, 31, 35)
    all_rotate = read_config(values | {"no_rope_layers": [1] * 40})
    assert all_rotate.rotary_layers is None and family_of(all_rotate) == "llama"


def test_published_olmo2():
    values = {"model_type": "olmo2", "hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 100352}
    values |= {"num_attention_heads": 16, "num_hidden_layers": 16, "num_key_value_heads": 16}
    values |= {"max_position_embeddings": 4096, "rms_norm_eps": 1e-06, "rope_theta": 500000}
    values |= {"attention_bias": False, "hidden_act": "silu", "tie_word_embeddings": False}
    got = read_config(values)
    assert (got.norm, got.norm_placement, got.query_key_norm) == ("rms", "after", "width")
    assert (got.rope_theta, got.tied_head, got.kv_heads) == (5e5, False, 16)
    assert family_of(got) == "olmo2"


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", (32, 2, 1e-6, False, 1e4)),
        ("qwen2", (32, 2, 1e-6, False, 1e4)),
        ("qwen3", (32, 128, 1e-6, False, 1e4)),
        ("mistral", (8, 2, 1e-6, False, 1e4)),
        ("gemma3_text", (4, 256, 1e-6, True, 1e6)),
        ("smollm3", (4, 2, 1e-6, True, 2e6)),
        ("olmo2", (32, 2, 1e-5, False, 1e4)),
    ],
)
def test_a_missing_entry_has_the_value_that_transformers_gives_it(family, expected):
    """The defaults of transformers 5.24's configuration classes, the same in 4.57."""
    got = read_config(SIZES | {"model_type": family})
    assert (got.kv_heads, got.depth, got.norm_epsilon, got.tied_head, got.rope_theta) == expected
    if family != "gemma3_text":
        assert read_config(SIZES | {"model_type": family, "num_key_value_heads": None}).kv_heads == 32
    layers = {"gemma3_text": (0, 1, 2, 3, 4, 6, 7, 8, 9, 10)}.get(family)
    assert (got.window, got.window_layers) == (4096 if family in ("mistral", "gemma3_text") else None, layers)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("gemma3", {"model_type": "gemma3"}, "one of gpt2, .*, gemma3_text, .*; got 'gemma3'; no other"),
        ("gemma3", {"model_type": "gemma2"}, "got 'gemma2'; no other family is supported"),
        ("gemma3", {"model_type": ["gemma3"]}, r"model_type must be of type str; got \['gemma3'\]"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping must be None; got 30.0"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping must be None; got 50.0"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention must be False"),
        ("gemma3", {"hidden_activation": "gelu"}, "hidden_activation must be gelu_pytorch_tanh; got 'gelu'"),
        ("gemma3", {"layer_types": ["full_attention"]}, "layer_types must give each of 2 layers"),
        ("gemma3", {"layer_types": ["chunked_attention"] * 2}, "layer_types must give each of 2 layers"),
        ("gemma3", {"layer_types": 2}, "layer_types must be a list of str; got 2"),
        ("gemma3", {"sliding_window": None}, "has sliding_attention, but sliding_window is unset"),
        ("gemma3", {"sliding_window": 0}, "window must be at least 1; got 0"),
        ("gemma3", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be at least 1; got 0"),
        ("gemma3", {"head_dim": None}, "head_dim is missing or null"),
        (
            "gemma3",
            {"layer_types": None, "sliding_window_pattern": 0},
            "sliding_window_pattern must be at least 1; got 0",
        ),
        (
            "gemma3",
            {"rope_parameters": {"rope_theta": 10.0, "rope_type": "default"}},
            "must hold full_attention and sliding_attention, .*; got rope_theta, rope_type",
        ),
        (
            "gemma3",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "the rope_type of sliding_attention must be default",
        ),
        (
            "gemma3",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}},
            "rope_type must be one of default, linear, llama3; got 'yarn'",
        ),
        ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types must be None; got .'full_att"),
        ("mistral", {"sliding_window": 2.5}, "sliding_window must be of type int; got 2.5"),
        ("mistral", {"rope_parameters": {"rope_type": "longrope"}}, "got 'longrope', which is not supp"),
        (
            "smollm3",
            {"rope_parameters": {"full_attention": {"rope_theta": 10.0}}},
            "rope_parameters apart for full_attention are not supported in this family",
        ),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers must give each of 2 layers 0 or 1; got .1."),
        ("smollm3", {"no_rope_layers": [1, 2]}, "no_rope_layers must give each of 2 layers 0 or 1"),
        ("smollm3", {"no_rope_layers": 4}, "no_rope_layers must be a list of int; got 4"),
        (
            "smollm3",
            {"no_rope_layers": None, "no_rope_layer_interval": 0},
            "no_rope_layer_interval must be at least 1; got 0",
        ),
        ("smollm3_windowed", {"use_sliding_window": False}, "use_sliding_window or sliding_window is unset"),
        ("smollm3", {"attention_bias": "yes"}, "attention_bias must be of type bool; got 'yes'"),
        ("qwen3", {"head_dim": None}, "head_dim is missing or null"),
        ("olmo2", {"hidden_act": "gelu"}, "hidden_act must be silu or swish; got 'gelu'"),
        ("olmo2", {"tie_word_embeddings": 1}, "tie_word_embeddings must be of type bool; got 1"),
        ("qwen2", {"is_causal": False}, "is_causal must be True or None; got False, which is not supported"),
        (
            "llama",
            {"original_max_position_embeddings": 32},
            "original_max_position_embeddings must be the same at .* rope scaling; got 32 and 16; remove",
        ),
    ],
)
def test_configurations_that_are_not_supported_are_refused(name, changed, message):
    with pytest.raises(ValueError, match=message):
        read_config(CONFIGS[name] | changed)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dataclasses.replace(GEMMA3, embedding_scale=3.0), "gemma3_text cannot hold embedding_scale"),
        (dataclasses.replace(GEMMA3, attention_scale=0.3), "gemma3_text cannot hold attention_scale"),
        (dataclasses.replace(GEMMA3, local_rope_theta=None), "gemma3_text cannot hold local_rope_theta"),
        (dataclasses.replace(GEMMA3, feed_forward="swiglu"), "gemma3_text cannot hold feed_forward"),
        (dataclasses.replace(GEMMA3, norm="rms"), "gemma3_text cannot hold norm;"),
        (
            dataclasses.replace(SMOLLM3, local_rope_theta=5.0, window=4),
            "smollm3 cannot hold local_rope_theta",
        ),
        (dataclasses.replace(OLMO2, query_key_norm="head"), "olmo2 cannot hold query_key_norm"),
        (dataclasses.replace(OLMO2, rotary_layers=(1,)), "olmo2 cannot hold rotary_layers"),
        (dataclasses.replace(MISTRAL, biased=("query",)), "mistral cannot hold biased"),
    ],
)
def test_a_configuration_that_no_family_can_hold_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        family_of(config)


@pytest.mark.parametrize(
    ("config", "family"),
    [
        (dataclasses.replace(GEMMA3, window=None, window_layers=None, local_rope_theta=None), "gemma3_text"),
        (dataclasses.replace(GEMMA3, window_layers=None), "gemma3_text"),
        (dataclasses.replace(GEMMA3, layers=5, window_layers=(1, 2)), "gemma3_text"),
        (dataclasses.replace(GEMMA3, rope_scaling=None, local_rope_theta=None), "gemma3_text"),
        (dataclasses.replace(GEMMA3, rope_scaling=None, local_rope_theta=GEMMA3.rope_theta), "gemma3_text"),
        (dataclasses.replace(GEMMA3, attention_scale=GEMMA3.depth**-0.5), "gemma3_text"),
        (
            dataclasses.replace(MISTRAL, dtype="bfloat16", remat=True, unroll=True, attention="cudnn"),
            "mistral",
        ),
        (dataclasses.replace(MISTRAL, window_layers=(0, 1)), "mistral"),
        (dataclasses.replace(MISTRAL, window_layers=(1,)), "smollm3"),
        (dataclasses.replace(SMOLLM3, rotary_layers=()), "smollm3"),
        (dataclasses.replace(SMOLLM3, rotary_layers=(0, 1)), "llama"),
        (dataclasses.replace(OLMO2, biased=("query", "key", "value", "attention_out")), "olmo2"),
    ],
)
def test_other_members_of_a_family_find_the_way_back(config, family):
    assert family_of(config) == family
    again = read_config(write_config(config, family))
    assert read_config(write_config(again, family)) == again


@pytest.mark.parametrize("name", CASES)
def test_each_of_the_two_spellings_of_windows_that_we_write_is_enough(name):
    """Older versions do not know `layer_types`."""
    config, family = read_config(CONFIGS[name]), CONFIGS[name]["model_type"]
    written = write_config(config, family)
    whole = read_config(written)
    for unknown in (
        {"layer_types"},
        {"max_window_layers", "sliding_window_pattern"},
    ):
        assert read_config({key: x for key, x in written.items() if key not in unknown}) == whole


def test_a_gemma3_without_windows_names_a_number():
    """transformers builds the mask of windows in any case, and cannot without one."""
    config = dataclasses.replace(GEMMA3, window=None, window_layers=None, local_rope_theta=None)
    written = write_config(config, "gemma3_text")
    assert written["sliding_window"] == config.context and "sliding_attention" not in written["layer_types"]
    assert read_config(written).window is None


def test_the_original_context_may_stand_outside_of_the_scaling():
    values = CONFIGS["llama"] | {"original_max_position_embeddings": 32}
    scaling = {k: v for k, v in values["rope_parameters"].items() if not k.startswith("original")}
    assert read_config(values | {"rope_parameters": scaling}).rope_scaling.original_context == 32


def test_layers_without_a_period_are_written_without_one():
    """Versions before 4.53 read the period alone."""
    regular = dataclasses.replace(GEMMA3, layers=4, window_layers=(0, 2))
    irregular = dataclasses.replace(GEMMA3, layers=4, window_layers=(1, 2))
    assert write_config(regular, "gemma3_text")["sliding_window_pattern"] == 2
    assert "sliding_window_pattern" not in write_config(irregular, "gemma3_text")
    assert write_config(irregular, "gemma3_text")["layer_types"][0] == "full_attention"


@pytest.mark.parametrize("name", CASES)
def test_a_record_names_every_tensor_that_transformers_writes(name):
    config, family = read_config(CONFIGS[name]), CONFIGS[name]["model_type"]
    assert sorted(tensor.name for tensor in tensors_of(config, FAMILIES[family])) == sorted(
        CASES[name]["shapes"]
    )


def test_a_record_that_forgets_a_parameter_is_refused():
    """Otherwise its content would be whatever was in memory."""
    with pytest.raises(
        ValueError, match="GPT2LMHeadModel names no tensor for layers.attention_post_norm.scale, .*gate"
    ):
        tensors_of(OLMO2, FAMILIES["gpt2"])


def test_every_family_has_a_case():
    assert {config["model_type"] for config in CONFIGS.values()} == set(FAMILIES)
