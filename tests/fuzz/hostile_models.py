"""What is known to be bad in a model's files: each was a raw error, a hang or a silent fault, or might be."""

import json
import math
from typing import Any

_SCALING = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_SCALING |= {"original_max_position_embeddings": 16}
_DEEP = '{"model_type": ' + "[" * 100_000
CONFIG_ENTRIES: dict[str, tuple[Any, ...]] = {
    "llama": (
        *({"rms_norm_eps": 10**12}, {"rope_theta": 1e308}, {"rope_theta": None, "rope_scaling": 1e308}),
        *({"tie_word_embeddings": "false"}, {"tie_word_embeddings": 0}, {"rms_norm_eps": -1}),
        *({"rms_norm_eps": math.nan}, {"rms_norm_eps": math.inf}, {"rms_norm_eps": 10**400}),
        *({"num_hidden_layers": 10**12}, {"num_hidden_layers": 10**400}, {"num_hidden_layers": True}),
        *({"hidden_size": 8.0}, {"hidden_size": None}, {"vocab_size": -1}, {"vocab_size": "20"}),
        *({"vocab_size": 2**31}, {"head_dim": 0}, {"rope_theta": 10**400}, {"rope_theta": 0}),
        *({"rope_theta": "1e4"}, {"rope_scaling": 5}, {"rope_scaling": [1]}, {"rope_parameters": "linear"}),
        *({"rope_scaling": _SCALING | {"factor": "8"}}, {"rope_scaling": _SCALING | {"factor": math.nan}}),
        *({"rope_scaling": {"rope_type": ["llama3"]}}, {"architectures": 5}, {"architectures": [5]}),
        *({"model_type": ["llama"]}, {"model_type": {}}, {"quantization_config": 1}, {"hidden_act": [1]}),
        *({"partial_rotary_factor": "1"}, {"attention_bias": "yes"}, "", "[]", "null", _DEEP, '"\\ud800"'),
        '{"num_hidden_layers": ' + "9" * 5_000 + "}",
    ),
    "qwen2": (
        *({"sliding_window": 1.5}, {"sliding_window": 0}, {"sliding_window": -1}, {"sliding_window": "4"}),
        *({"max_window_layers": -1, "layer_types": None}, {"use_sliding_window": 1}, {"layer_types": 2}),
        *({"layer_types": [["full_attention"]] * 2}, {"layer_types": ["x" * 100_000] * 2}),
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
    ),
    "gemma3": (
        *({"rope_parameters": {"full_attention": 5}}, {"rope_parameters": {"a\nb" * 10_000: {}}}),
        *({"sliding_window_pattern": 0}, {"query_pre_attn_scalar": 0}, {"query_pre_attn_scalar": math.nan}),
        {"rope_local_base_freq": -1},
    ),
    "smollm3": (
        *({"no_rope_layers": 4}, {"no_rope_layers": [[1], 0]}, {"no_rope_layers": [1]}),
        {"no_rope_layers": None, "no_rope_layer_interval": 0},
    ),
    "gpt2": ({"n_inner": 0}, {"n_positions": 0.5}, {"activation_function": ["gelu_new"]}),
}
"""By family, entries of `config.json` or its whole text."""

TEMPLATES = (
    *("{% for %}", "{{ 10**(10**8) }}", "{{ 'a'*10**9 }}", "{{ 10**9*'a' }}", "{{ '%1000000000d' % 1 }}"),
    *("{{ 'a'|center(1000000000) }}", "{{ 'a'.ljust(1000000000) }}", "{{ '{:1000000000}'.format(1) }}"),
    *("{{ '%1000000000d'|format(1) }}", "{{ '%*d' % (1000000000, 1) }}", "{{ '{:{}}'.format(1, 9999999) }}"),
    *("{{ 1.5|round(1000000000, 'ceil') }}", "{{ [1]|tojson(indent=1000000000) }}", "{{ lipsum(n=9) }}"),
    *("{{ 'a\\nb'|indent(1000000000) }}", "{{ '\t'.expandtabs(1000000000) }}", "{{ 1.0.hex() }}"),
    *("{{ range(0, 9**99, 9**93)|list|length }}", "{{ [1]|batch(1000000000, 'x')|list }}"),
    "{% autoescape 'a'|center(1000000000) %}{% endautoescape %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% set r = range(99999) %}" + "{% for b in r if false %}{% endfor %}" * 1_500,
    "{% set n = namespace(x='a') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for a in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=1) %}{% for a in range(99) %}{% set n.x = dict(a=n.x, b=n.x) %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "{% set x = 'a' * 100000 %}{{ x.replace('', x) }}",
    "{% set x = 'a' * 100000 %}{{ x | replace('a', x) }}",
    "{% set x = 'a' * 100000 %}{{ x | join(x) }}",
    "{% set x = 'a' * 100000 %}{{ x.join(x) }}",
    "{% set x = 'a' * 100000 %}{{ ('{0}' * 3000).format(x) }}",
    "{% set x = 'a' * 100000 %}{{ '\\n' * 9999 | indent(x) }}",
    "{% set x = 'a' * 1000000 %}{{ (" + "~".join(["x"] * 5_000) + ") | length }}",
    "{{ range(9999) | list | tojson(separators=('a' * 100000, 'b')) }}",
    "{% set x = range(99999) | map('string') | list %}{{ x | select('in', x) | list | length }}",
    "{% for i in range(99999) %}" + "a" * 60_000 + "{% endfor %}",
    "{% set x %}{% for i in range(99999) %}" + "a" * 60_000 + "{% endfor %}{% endset %}",
    *("{{ " + "(" * 9_000 + "1" + ")" * 9_000 + " }}", "{{ a" + ".b" * 9_000 + " }}", "x" * 200_000),
    "{% if 1 %}" * 3_000 + "{% endif %}" * 3_000,
    "{% for a in [1] %}" * 25 + "{% endfor %}" * 25,
    *("{{ " + "9" * 9_000 + " }}", "{{ 1e999 }}", "{% include 'x' %}"),
    *("{{ ''.__class__.__mro__ }}", "{{ raise_exception('a\\nb' * 999) }}", "{{ ''.encode() }}", b"\xff"),
)
"""Sources of `chat_template.jinja`."""

INDEXES = tuple(
    text if isinstance(text, str) else json.dumps({"weight_map": text})
    for text in (
        *("{", "[]", "{}", '{"weight_map": null}', {"x": 5}, {"x": None}, {"x": ["part0.safetensors"]}, "[["),
        *(
            {"x": "../part0.safetensors"},
            {"x": "/etc/passwd"},
            {"x": "\0.safetensors"},
            {"x": ""},
            [["a", 1]],
        ),
        *({"x": "a\n.safetensors"}, {"x": "a" * 9_000 + ".safetensors"}, {"x": "\ud800.safetensors"}),
    )
)
"""Texts of `model.safetensors.index.json`."""

_LONGER = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 50}
_STEPS = {
    "normalizer": {"type": "Sequence", "normalizers": [_LONGER] * 9},
    "decoder": {"type": "Sequence", "decoders": [_LONGER] * 9},
    "pre_tokenizer": {
        "type": "Split",
        "pattern": {"Regex": "([a-z]+)+$"},
        "behavior": "Isolated",
        "invert": False,
    },
    "post_processor": {"type": "BertProcessing", "sep": ["<stop>", 2**31], "cls": ["<s>", 2**32 - 1]},
    "padding": {"strategy": {"Fixed": 10**12}, "direction": "x"},
}
_WORDS = {"type": "WordLevel", "vocab": {"<stop>": 0, "<unk>": 1}, "unk_token": "<unk>"}
_WHOLE = {"version": "1.0", "added_tokens": [], "model": _WORDS}
TOKENIZERS: tuple[tuple[str, str], ...] = (
    *(("tokenizer.json", json.dumps(_WHOLE | {name: step})) for name, step in _STEPS.items()),
    ("tokenizer.json", json.dumps(_WHOLE | {"model": _WORDS | {"vocab": {"<stop>": 2**32 - 1}}})),
    *(("tokenizer.json", text) for text in ("", "{}", "[]", "null", "[" * 100_000, '{"model": 5}')),
    *(
        ("tokenizer_config.json", json.dumps(values))
        for values in (
            *({"eos_token": 5}, {"eos_token": ["<stop>"]}, {"eos_token": {}}, {"eos_token": {"content": 5}}),
            *({"eos_token": "\ud800"}, {"eos_token": "a" * 99_999}, {"chat_template": 5}),
            *({"chat_template": [5]}, {"chat_template": [{"name": "default"}]}, {"chat_template": {"a": 1}}),
        )
    ),
)
"""Names and texts of a tokenizer's files."""

REWARD_ENTRIES: tuple[Any, ...] = (
    *({"reward_bias": None}, {"reward_bias": 1e308}, {"reward_bias": "0"}, {"architectures": None}),
    *({"layer_norm_epsilon": 10**12}, {"architectures": [None]}, {"n_layer": 3}, {"n_layer": 10_000}),
    *({"n_embd": 2**31 - 1}, {"n_positions": 2**31 - 1}, {"vocab_size": 2**31 - 1}, {"n_inner": 2**31 - 1}),
)
"""Entries of a reward model's `config.json`."""

BASE_NAMES = tuple(
    {"base_model_name_or_path": name}
    for name in (None, "", 5, ["a"], "\0", "a\nb", "a" * 9_000, "\ud800", "/nowhere", "a/../../b")
)
"""Entries of an adapter's configuration that name its base."""

ADAPTER_ENTRIES: dict[str, tuple[Any, ...]] = {
    "lora": (
        *(
            {"use_dora": "false"},
            {"use_rslora": "false"},
            {"use_rslora": 1},
            {"r": 0},
            {"r": 2.0},
            {"r": "2"},
        ),
        *({"r": 10**9}, {"lora_alpha": math.nan}, {"lora_alpha": 10**400}, {"lora_dropout": 1}),
        {"lora_alpha": 1e308},
        *(
            {"lora_dropout": "0"},
            {"target_modules": 5},
            {"target_modules": [5]},
            {"target_modules": "(a+)+$"},
        ),
        *({"target_modules": "("}, {"target_modules": "(.+)+x"}, {"target_modules": "(?:.|.)*x"}),
        *({"target_modules": ".?" * 40 + "x"}, {"target_modules": ".*" * 12 + "x"}, {"peft_type": ["LORA"]}),
        *({"rank_pattern": [1]}, {"rank_pattern": {"(": 1}}, {"rank_pattern": {"q_proj": "1"}}),
        *({"alpha_pattern": {"q_proj": math.nan}}, {"layers_to_transform": "0"}, {"layers_pattern": 5}),
        *(
            {"layers_to_transform": [1], "layers_pattern": "(", "target_modules": ["x"]},
            {"exclude_modules": {"a": 1}},
            "",
            "[]",
        ),
        *({"layers_to_transform": [True, "a"]}, {"init_lora_weights": [1]}, {"bias": "all"}, "[" * 100_000),
    ),
    "ia3": ({"feedforward_modules": 5}, {"feedforward_modules": [5]}, {"feedforward_modules": "(.+)+x"}),
    "prompt": ({"num_virtual_tokens": 0}, {"num_virtual_tokens": 10**12}, {"num_virtual_tokens": 3.0}),
    "prefix": ({"num_virtual_tokens": -1}, {"num_virtual_tokens": 2}, {"num_virtual_tokens": "3"}),
}
"""By kind, entries of `adapter_config.json` or its whole text."""
