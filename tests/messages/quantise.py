"""Kernels that cannot be packed, merged or saved."""

import jax
import jax.numpy as jnp

from jaxrl_align import nets
from jaxrl_align.runtime import huggingface

CONFIG = nets.TransformerConfig(20, width=8, layers=1, heads=1, context=32)
PARAMS = jax.eval_shape(nets.make_transformer(CONFIG).init, jax.random.key(0))
PACKED = jax.eval_shape(nets.quantise_params, PARAMS)


def pack(*shape, dtype=jnp.float32, kind="nf4"):
    return nets.quantise(jnp.zeros(shape, dtype), kind)


def fold():
    part, constants = nets.init_lora(jax.random.key(0), PACKED, rank=1)
    return nets.merge(nets.overlay(nets.overlay(PACKED, constants), part))


CASES = {
    "quantise: an unknown kind": (
        lambda: pack(4, 4, kind="nf5"),
        ValueError,
        "kind must be one of nf4, fp4, int4, int8; got 'nf5'",
    ),
    "quantise: a vector": (
        lambda: pack(4),
        ValueError,
        r"\[..., in, out\]; got float32 \(4,\); leave it plain",
    ),
    "quantise: integers": (lambda: pack(4, 4, dtype=jnp.int32), ValueError, "floating point .*got int32"),
    "quantise: an odd number of inputs": (
        lambda: pack(5, 4),
        ValueError,
        r"even number of inputs .*got 5 of \(5, 4\); take int8, or leave",
    ),
    "quantise: twice": (
        lambda: nets.quantise_params(PACKED),
        ValueError,
        r"layers/attention_out: kernel must be plain .*; got nf4 already; merge\(params, dtype=...\)",
    ),
    "quantise: no such layer": (
        lambda: nets.quantise_params(PARAMS, targets=("qkv",)),
        ValueError,
        r"targets must name linear layers under 'layers'; got \('qkv',\), the model has \['attention_out'",
    ),
    "quantise: no language model": (
        lambda: nets.quantise_params({"head": {"kernel": jnp.zeros((4, 4))}}),
        ValueError,
        r"got None, the model has \[\]",
    ),
    "quantise: an adapter merged into 4 bits": (
        fold,
        ValueError,
        "merge must be given a dtype .*got lora over nf4 at layers/.*; pass dtype=jnp.bfloat16, or overlay",
    ),
    "quantise: an adapter of another width": (
        lambda: nets.overlay(PACKED, {"layers": {"up": {"lora": {"a": jnp.zeros((1, 9, 2))}}}}),
        ValueError,
        r"got shape \(1, 9, 2\) at layers/up/lora/a, .*beside a kernel of shape \(1, 8, 32\)",
    ),
    "quantise: saved as a Hugging Face folder": (
        lambda: huggingface.save_model("no/such/folder", CONFIG, PACKED),
        ValueError,
        r"plain kernels; got params\['layers'\]\['attention_out'\]\['kernel'\]\['nf4'\].*nets.merge\(params",
    ),
}
