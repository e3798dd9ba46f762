"""The entries of a model folder's JSON files that are read, each with its type and range.

A file is checked against them when it is opened; other entries may stand beside them.
"""

from typing import Annotated, Any, TypedDict

from jaxrl_align.nets.transformer_config import MOST_LAYERS
from jaxrl_align.typed import Count, Index, Positive, Within

Layers = Annotated[int, Within(1, MOST_LAYERS)]


class RopeEntries(TypedDict, total=False):
    """`rope_scaling`, and `rope_parameters`, which in some families holds one such object for each kind."""

    rope_type: str
    type: str
    rope_theta: Positive
    factor: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_max_position_embeddings: Count
    partial_rotary_factor: float
    full_attention: dict[str, Any]
    sliding_attention: dict[str, Any]


class ConfigEntries(TypedDict, total=False):
    """`config.json`, in all families."""

    model_type: str
    architectures: list[str]
    quantization_config: dict[str, Any]
    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Layers
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    max_position_embeddings: Count
    rms_norm_eps: Annotated[float, Within(0, 1)]
    layer_norm_epsilon: Annotated[float, Within(0, 1)]
    tie_word_embeddings: bool
    n_embd: Count
    n_layer: Layers
    n_head: Count
    n_positions: Count
    n_inner: Count
    rope_theta: Positive
    rope_local_base_freq: Positive
    rope_scaling: RopeEntries
    rope_local_scaling: RopeEntries
    rope_parameters: RopeEntries
    original_max_position_embeddings: Count
    partial_rotary_factor: float
    sliding_window: Index
    use_sliding_window: bool
    max_window_layers: Index
    sliding_window_pattern: Count
    layer_types: list[str]
    no_rope_layers: list[int]
    no_rope_layer_interval: Count
    query_pre_attn_scalar: Annotated[float, Within(1)]
    attention_bias: bool
    mlp_bias: bool
    eos_token_id: int | list[int]
    reward_bias: float


class GenerationEntries(TypedDict, total=False):
    """`generation_config.json`."""

    eos_token_id: int | list[int]


class IndexEntries(TypedDict, total=False):
    """`model.safetensors.index.json`."""

    weight_map: dict[str, str]


class AdapterEntries(TypedDict, total=False):
    """`adapter_config.json` of PEFT, in all kinds."""

    peft_type: str
    base_model_name_or_path: str
    target_modules: str | list[str]
    exclude_modules: str | list[str]
    feedforward_modules: str | list[str]
    layers_to_transform: int | list[int]
    layers_pattern: str | list[str]
    r: Annotated[int, Within(1, 2**20)]
    lora_alpha: float
    lora_dropout: float
    rank_pattern: dict[str, Annotated[int, Within(1, 2**20)]]
    alpha_pattern: dict[str, float]
    init_lora_weights: bool | str
    use_dora: bool
    use_rslora: bool
    fan_in_fan_out: bool
    num_virtual_tokens: Count
