"""Parts that do not fit, patterns that match nothing, ranks that cannot be."""

import jax
import jax.numpy as jnp

from jaxrl_align import nets

BASE = {"query": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}, "norm": {"scale": jnp.ones(4)}}


def lora(rank=1, **how):
    return nets.init_lora(jax.random.key(0), BASE, rank=rank, **how)


CASES = {
    "LoRA: rank 0": (
        lambda: lora(0),
        ValueError,
        "rank must be from 1 to 2, the smaller side of query; got 0; leave",
    ),
    "LoRA: a rank above the matrix": (lambda: lora(3), ValueError, "rank must be from 1 to 2, .*; got 3"),
    "LoRA: a pattern that matches nothing": (
        lambda: lora(targets=("query", "qkv*")),
        ValueError,
        r"targets must match linear layers; got \['qkv\*'\], which match none; there are query$",
    ),
    "LoRA: no pattern": (
        lambda: lora(targets=()),
        ValueError,
        r"got \(\), which match none",
    ),
    "LoRA: a norm": (lambda: lora(targets="norm"), ValueError, r"got \['norm'\], which match none"),
    "IA3: a pattern that matches nothing": (
        lambda: nets.init_ia3(BASE, outputs="query"),
        ValueError,
        r"inputs must match linear layers; got \['\*down'\], which match none; there are query",
    ),
    "select: a pattern that matches nothing": (
        lambda: nets.select(BASE, ["*bias", "*lora*"]),
        ValueError,
        r"spec must match leaves; got \['\*lora\*'\], which match none; there are norm/scale, query/bias",
    ),
    "select: a function that chooses nothing": (
        lambda: nets.select(BASE, lambda name: False),
        ValueError,
        "spec must match leaves; got <function .*, which match none; there are norm/scale",
    ),
}
