"""Parts that do not fit, patterns that match nothing, ranks that cannot be."""

import jax
import jax.numpy as jnp

from jaxrl_align import nets

BASE = {"query": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}, "norm": {"scale": jnp.ones(4)}}


def lora(rank=1, **how):
    return nets.init_lora(jax.random.key(0), BASE, rank=rank, **how)


def prompt(**how):
    return nets.init_prompt(jax.random.key(0), LANGUAGE, **how)


LM = nets.make_transformer(nets.TransformerConfig(20, width=8, layers=1, heads=1, context=32))
LANGUAGE = jax.tree.map(lambda x: jnp.zeros(x.shape), jax.eval_shape(LM.init, jax.random.key(0)))
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
    "select: layers that there are not": (
        lambda: nets.select({"layers": {"scale": jnp.ones((2, 3))}}, "*", layers=[-2, 1, 2]),
        ValueError,
        r"layers must lie from -2 to 1; got \[2\]",
    ),
    "select: layers of what has none": (
        lambda: nets.select(BASE, "*", layers=range(1)),
        ValueError,
        r"spec must match leaves of layers; got '\*' and layers=\[0\]",
    ),
    "overlay: a row that there is not": (
        lambda: nets.overlay({"layers": {"w": jnp.ones((2, 3))}}, {"layers": {"rows": {"2": {"w": 0}}}}),
        ValueError,
        "a part must fit its base; got layers/rows/2, where the base has rows from 0 to 1",
    ),
    "overlay: a row without a number": (
        lambda: nets.overlay({"layers": {"w": jnp.ones((2, 3))}}, {"layers": {"rows": {"top": {"w": 0}}}}),
        ValueError,
        "a part must fit its base; got layers/rows/top, where the base has rows from 0 to 1",
    ),
    "overlay: a row of another shape": (
        lambda: nets.overlay({"w": jnp.ones((2, 3))}, {"rows": {"1": {"w": jnp.ones(2)}}}),
        ValueError,
        r"got shape \(2,\) at rows/1/w, where the base has shape \(3,\)",
    ),
    "overlay: rows of a kind": (
        lambda: nets.overlay({"w": {"kernel": jnp.ones((2, 3, 3))}}, {"rows": {"1": {"w": {"ia3": {}}}}}),
        ValueError,
        r"rows must be of leaves that the base has; got \['ia3'\]",
    ),
    "Houlsby: width 0": (
        lambda: nets.init_houlsby(jax.random.key(0), BASE, width=0),
        ValueError,
        "width must be at least 1; got 0; a tenth",
    ),
    "merge: a bottleneck": (
        lambda: nets.merge(
            nets.overlay(BASE, nets.init_houlsby(jax.random.key(0), BASE, width=1, targets="query").part)
        ),
        ValueError,
        "merge must get what a linear layer can compute; got houlsby; overlay it",
    ),
    "prompt: no token": (lambda: prompt(length=0), ValueError, "length must be at least 1; got 0; 20 is"),
    "prompt: an unknown start": (
        lambda: prompt(start="zeros"),
        ValueError,
        'start must be "vocabulary", "random" or tokens; got \'zeros\'; encode a text',
    ),
    "prompt: beyond the vocabulary": (
        lambda: prompt(start=[3, 20]),
        ValueError,
        r"start must hold tokens from 0 to 19; got \[3, 20\]",
    ),
    "prompt: an empty start": (lambda: prompt(start=[]), ValueError, r"from 0 to 19; got \[\]"),
    "prompt: of another width": (
        lambda: nets.overlay(LANGUAGE, {"prompt": {"table": jnp.ones((2, 9))}}),
        ValueError,
        r"got shape \(2, 9\) at prompt/table, expected \(any, 8\) beside tokens of shape \(20, 8\)",
    ),
    "prefix: of another depth": (
        lambda: nets.overlay(LANGUAGE, {"layers": {"prefix": {"key": jnp.ones((2, 3, 8))}}}),
        ValueError,
        r"got shape \(2, 3, 8\) at layers/prefix/key, expected \(1, any, 8\) beside 1 keys of width 8",
    ),
    "prefix: and a prompt": (
        lambda: jax.eval_shape(
            LM.encode,
            nets.overlay(
                nets.overlay(LANGUAGE, prompt().part),
                {"layers": {"prefix": {name: jnp.ones((1, 3, 8)) for name in ("key", "value")}}},
            ),
            jnp.zeros(2, jnp.int32),
        ),
        ValueError,
        "params must have a prompt or a prefix; got both; leave one out",
    ),
    "tasks: none": (lambda: nets.stack_parts([]), ValueError, "parts must hold at least one; got none"),
    "tasks: of two ranks": (
        lambda: nets.stack_parts([lora(1).part, lora(2).part]),
        ValueError,
        r"one form; got \['query'\]\['lora'\]\['a'\] of shape \(4, 1\) in the first, \(4, 2\) in number 1",
    ),
    "tasks: of two kinds": (
        lambda: nets.stack_parts([lora(1).part, {}]),
        ValueError,
        r"got \['query'\]\['lora'\]\['a'\] of shape \(4, 1\) in the first, None in number 1",
    ),
    "select: a function that chooses nothing": (
        lambda: nets.select(BASE, lambda name: False),
        ValueError,
        "spec must match leaves; got <function .*, which match none; there are norm/scale",
    ),
}
