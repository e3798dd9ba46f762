"""What an adapter computes: the kinds that a linear layer reads beside its kernel.

| kind | computes | source |
|---|---|---|
| "lora" | `x W + scale (x A) B` | Hu et al. 2021, arXiv:2106.09685 |
| "dora" | `m / norm(W + scale A B) * (x W + scale (x A) B)` | Liu et al. 2024, arXiv:2402.09353 |
| "ia3" | `(x W + b) * v` | Liu et al. 2022, arXiv:2205.05638 |
| "ia3_input" | `(x * v) W + b` | the same, on the input of the feed-forward's last layer |
| "houlsby" | `y + gelu(y D + d) U + u` with `y = x W + b` | Houlsby et al. 2019, arXiv:1902.00751 |

(Lecture D5 prints `A x B` for LoRA; the product with shapes A [in, rank], B [rank, out] is the one meant.)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Leaves = dict[str, jax.Array]


class Kind(NamedTuple):
    """A way of tuning a linear layer by leaves of its own, beside its kernel under the kind's name."""

    trained: Callable[[tuple[int, ...]], dict[str, tuple[Any, ...]]]
    """`kernel's shape -> {leaf: its shape}` of what is trained; a size that may be anything is None."""
    merge: Callable[[Leaves, Leaves], Leaves] | None
    """`(leaves, layer) -> layer`: the kernel [..., in, out], and bias, of the plain layer that computes the
    same; only what changes. None where there is no such layer."""
    apply: Callable[[Leaves, jax.Array, jax.Array, Leaves], jax.Array] = lambda own, x, y, layer: y
    """`(leaves, x [..., in], y [..., out], layer) -> y'`: the layer's output with the adapter. `layer` holds
    the kernel and, where there is one, the bias, which y includes."""
    read: Callable[[Leaves, jax.Array], jax.Array] = lambda own, x: x
    """`(leaves, x) -> x'`: what the layer reads instead of its input."""


def _last_axis(v: jax.Array, x: jax.Array) -> jax.Array:
    """Return v [n] in x's dtype and rank, to be broadcast over x [..., n]."""
    return jnp.expand_dims(v.astype(x.dtype), range(x.ndim - 1))


def _low_rank(own: Leaves, x: jax.Array) -> jax.Array:
    a, b = own["a"].astype(x.dtype), own["b"].astype(x.dtype)
    return own["scale"].astype(x.dtype) * ((x @ a) @ b)


def _add_low_rank(own: Leaves, kernel: jax.Array) -> jax.Array:
    return kernel + own["scale"][..., None, None] * (own["a"] @ own["b"])


def _low_rank_shapes(kernel: tuple[int, ...]) -> dict[str, tuple[Any, ...]]:
    return {"a": (*kernel[:-1], None), "b": (*kernel[:-2], None, kernel[-1])}


def column_norms(kernel: jax.Array) -> jax.Array:
    """Return the norms [..., out] of the columns of kernels [..., in, out], in float32."""
    return jnp.linalg.norm(kernel.astype(jnp.float32), axis=-2)


def _dora_gain(own: Leaves, kernel: jax.Array) -> jax.Array:
    """Return what DoRA multiplies the columns by, [..., out]; the norms have no gradient (section 4.3)."""
    norms = jax.lax.stop_gradient(column_norms(_add_low_rank(own, kernel)))
    return own["magnitude"] / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny)


def _apply_dora(own: Leaves, x: jax.Array, y: jax.Array, layer: Leaves) -> jax.Array:
    gain = _dora_gain(own, layer["kernel"])
    plain = y - _last_axis(layer["bias"], y) if "bias" in layer else y
    return y + _last_axis(gain - 1, y) * plain + _last_axis(gain, y) * _low_rank(own, x)


def _apply_houlsby(own: Leaves, x: jax.Array, y: jax.Array, layer: Leaves) -> jax.Array:
    inner = jax.nn.gelu(y @ own["down"].astype(y.dtype) + _last_axis(own["down_bias"], y))
    return y + inner @ own["up"].astype(y.dtype) + _last_axis(own["up_bias"], y)


# In this order they act on a layer, and are merged.
KINDS: dict[str, Kind] = {
    "dora": Kind(
        trained=lambda kernel: _low_rank_shapes(kernel) | {"magnitude": (*kernel[:-2], kernel[-1])},
        apply=_apply_dora,
        merge=lambda own, layer: {
            "kernel": _dora_gain(own, layer["kernel"])[..., None, :] * _add_low_rank(own, layer["kernel"])
        },
    ),
    "lora": Kind(
        trained=_low_rank_shapes,
        apply=lambda own, x, y, layer: y + _low_rank(own, x),
        merge=lambda own, layer: {"kernel": _add_low_rank(own, layer["kernel"])},
    ),
    "ia3_input": Kind(
        trained=lambda kernel: {"vector": kernel[:-1]},
        read=lambda own, x: x * _last_axis(own["vector"], x),
        merge=lambda own, layer: {"kernel": own["vector"][..., None] * layer["kernel"]},
    ),
    "ia3": Kind(
        trained=lambda kernel: {"vector": (*kernel[:-2], kernel[-1])},
        apply=lambda own, x, y, layer: y * _last_axis(own["vector"], y),
        merge=lambda own, layer: {
            name: leaf * (own["vector"][..., None, :] if name == "kernel" else own["vector"])
            for name, leaf in layer.items()
        },
    ),
    "houlsby": Kind(
        trained=lambda kernel: {
            "down": (*kernel[:-2], kernel[-1], None),
            "down_bias": (*kernel[:-2], None),
            "up": (*kernel[:-2], None, kernel[-1]),
            "up_bias": (*kernel[:-2], kernel[-1]),
        },
        apply=_apply_houlsby,
        merge=None,
    ),
}
"""The kinds that a linear layer reads, by the name of their leaves' node."""


def is_complete(kind: str, leaves: dict[str, jax.Array]) -> bool:
    """Return whether a kind's trained leaves are there; constants alone change nothing."""
    return KINDS[kind].trained((1, 1)).keys() <= leaves.keys()
