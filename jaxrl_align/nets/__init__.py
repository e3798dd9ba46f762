"""Networks as pure functions over plain dicts of parameters, and what is laid over them."""

from jaxrl_align.nets.adapters import (
    merge,
    overlay,
    select,
    stack_parts,
    take_part,
    with_dropout,
    without_dropout,
)
from jaxrl_align.nets.kinds import KINDS, Kind, Tuning, init_houlsby, init_ia3, init_lora
from jaxrl_align.nets.layered import (
    GLOROT,
    Autoencoder,
    LayeredNet,
    fan_in_uniform,
    make_autoencoder,
    make_layered_net,
)
from jaxrl_align.nets.memory import RecurrentNet, with_memory
from jaxrl_align.nets.mlp import (
    Net,
    make_actor_critic_net,
    make_gaussian_net,
    make_multi_discrete_net,
    orthogonal,
)
from jaxrl_align.nets.observations import flatten_observations
from jaxrl_align.nets.q_networks import QNet, make_q_net, make_state_action_net, make_table, support_between
from jaxrl_align.nets.quantize import dequantise, quantise, quantise_params
from jaxrl_align.nets.recipes import Recipe
from jaxrl_align.nets.transformer import (
    SHARED,
    LanguageModel,
    apply_scalar_head,
    init_prefix,
    init_prompt,
    init_scalar_head,
    make_transformer,
    positions_of,
)
from jaxrl_align.nets.transformer_config import RopeScaling, TransformerConfig

# fmt: off
__all__ = [
    "Autoencoder", "GLOROT", "KINDS", "Kind", "LanguageModel", "LayeredNet", "Net", "QNet", "Recipe",
    "RecurrentNet", "RopeScaling", "SHARED", "TransformerConfig", "Tuning", "apply_scalar_head",
    "dequantise", "fan_in_uniform", "flatten_observations", "init_houlsby", "init_ia3", "init_lora",
    "init_prefix", "init_prompt", "init_scalar_head", "make_actor_critic_net", "make_autoencoder",
    "make_gaussian_net", "make_layered_net", "make_multi_discrete_net", "make_q_net",
    "make_state_action_net", "make_table", "make_transformer", "merge", "orthogonal", "overlay",
    "positions_of", "quantise", "quantise_params", "select", "stack_parts", "support_between",
    "take_part", "with_dropout", "with_memory", "without_dropout",
]
# fmt: on
