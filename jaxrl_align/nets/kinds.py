"""Adapters of linear layers, a kind each: what it computes beside the kernel, and how it starts.

| kind | computes | source |
|---|---|---|
| "lora" | `x W + scale (x A) B` | Hu et al. 2021, arXiv:2106.09685 |
| "dora" | `m / norm(W + scale A B) * (x W + scale (x A) B)` | Liu et al. 2024, arXiv:2402.09353 |
| "ia3" | `(x W + b) * v` | Liu et al. 2022, arXiv:2205.05638 |
| "ia3_input" | `(x * v) W + b` | the same, on the input of the feed-forward's last layer |
| "houlsby" | `y + gelu(y D + d) U + u` with `y = x W + b` | Houlsby et al. 2019, arXiv:1902.00751 |

(Lecture D5 prints `A x B` for LoRA; the product with shapes A [in, rank], B [rank, out] is the one meant.)
"""

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.nets.quantize import dequantise, is_packed, kernel_shape
from jaxrl_align.types import Params

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
    if "key" in own:  # while it trains: `adapters.with_dropout`
        kept = 1 - own["dropout"].astype(x.dtype)
        x = jnp.where(jax.random.bernoulli(own["key"], kept, x.shape), x / kept, 0)
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


Spec = str | Sequence[str] | Callable[[str], bool]
"""Patterns of the shell's kind (`fnmatch`), of which a path, for example "layers/query/kernel", must match
one, or a function of the path. A pattern that matches nothing is an error."""


def match_names(names: Sequence[str], spec: Spec, argument: str, what: str) -> set[str]:
    """Return the names that a spec means; ValueError if it, or a pattern of it, means none."""
    if callable(spec):
        found, missed = set(filter(spec, names)), []
    else:
        patterns = (spec,) if isinstance(spec, str) else tuple(spec)
        hits = {p: {name for name in names if fnmatch.fnmatchcase(name, p)} for p in patterns}
        found, missed = set().union(*hits.values()), [p for p, hit in hits.items() if not hit]
    if missed or not found:
        raise ValueError(
            f"{argument} must match {what}; got {missed or spec!r}, which match none; there are "
            f"{', '.join(sorted(names))}"
        )
    return found


class Tuning(NamedTuple):
    """The leaves that one way of tuning adds to a base."""

    part: Params
    """The trained leaves, a partial tree."""
    constants: Params
    """Leaves that the part needs and that must not move: `overlay` them on the base."""


def init_lora(
    key: chex.PRNGKey,
    params: Params,
    *,
    rank: int,
    alpha: float | None = None,
    rslora: bool = False,
    dora: bool = False,
    dropout: float = 0.0,
    targets: Spec = "*",
) -> Tuning:
    """Return a low-rank adapter for linear layers of a base; it changes nothing at first, since B = 0.

    Args:
      key: source of A, drawn from U(-1/sqrt(in), 1/sqrt(in)).
      params: the base; a linear layer is a dict with a `kernel` of shape [..., in, out], plain or packed.
      rank: inner dimension, from 1 to the smaller side of each kernel.
      alpha: `(x A) B` is multiplied by alpha / rank; None, by 1.
      rslora: it is multiplied by alpha / sqrt(rank) instead, which suits high ranks (Kalajdzievski 2023,
        arXiv:2312.03732).
      dora: train the columns' magnitudes too, apart from their directions: the kind "dora". It starts as
        the base but for the rounding of a norm.
      dropout: the share of x's entries that A does not read while it trains, from 0 to below 1; the learners
        of texts draw them anew for every row and step (`with_dropout`), RLHF's leaves them in.
      targets: a `Spec` of the layers' paths, for example "*query" or ["layers/query", "layers/value"].

    Returns:
      A `Tuning`, at each target `{"lora": {"a": [..., in, rank], "b": [..., rank, out]}}`, and the constants
      `{"lora": {"scale": [...]}}`, with `dropout` [...] where it is not 0; of DoRA under "dora", with the
      trained `{"magnitude": [..., out]}`.

    Raises:
      ValueError: if the rank is below 1 or above a kernel's smaller side, dropout is no share below 1, or a
        pattern matches no layer.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be from 0 to below 1; got {dropout}; 0.05 is usual")
    places = _target(params, targets, "targets")
    limit, where = min((min(kernel_shape(kernel)[-2:]), "/".join(path)) for path, kernel in places.items())
    if not 1 <= rank <= limit:
        raise ValueError(
            f"rank must be from 1 to {limit}, the smaller side of {where}; got {rank}; leave it out "
            "of targets for more"
        )
    scale = (rank if alpha is None else alpha) / (rank**0.5 if rslora else rank)
    part: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    for (path, kernel), place_key in zip(places.items(), jax.random.split(key, len(places)), strict=True):
        *stack, fan_in, fan_out = kernel_shape(kernel)
        bound = fan_in**-0.5
        a = jax.random.uniform(place_key, (*stack, fan_in, rank), minval=-bound, maxval=bound)
        own = {"a": a, "b": jnp.zeros((*stack, rank, fan_out))}
        if dora:
            own["magnitude"] = column_norms(dequantise(kernel) if is_packed(kernel) else kernel)
        _put(part, (*path, "dora" if dora else "lora"), own)
        fixed = {"scale": scale} | ({"dropout": dropout} if dropout else {})
        fixed = {name: jnp.full(stack, value, jnp.float32) for name, value in fixed.items()}
        _put(constants, (*path, "dora" if dora else "lora"), fixed)
    return Tuning(part, constants)


def init_ia3(params: Params, *, outputs: Spec = ("*key", "*value"), inputs: Spec = ("*down",)) -> Tuning:
    """Return vectors of ones that multiply what linear layers write, or read: IA3.

    Args:
      params: the base.
      outputs: a `Spec` of the layers whose outputs, biases included, are multiplied; () for none.
      inputs: of those whose inputs are; by default the feed-forward's second layer.

    Returns:
      A `Tuning`, at each target `{"ia3": {"vector": [..., out]}}` or `{"ia3_input": {"vector": [..., in]}}`.

    Raises:
      ValueError: if a target matches no linear layer.
    """
    part: dict[str, Any] = {}
    for name, spec, argument, axis in (("ia3", outputs, "outputs", -1), ("ia3_input", inputs, "inputs", -2)):
        for path, kernel in ({} if spec == () else _target(params, spec, argument)).items():
            shape = kernel_shape(kernel)
            vector = jnp.ones((*shape[:-2], shape[axis]))
            _put(part, (*path, name), {"vector": vector})
    return Tuning(part, {})


def init_houlsby(
    key: chex.PRNGKey, params: Params, *, width: int, targets: Spec = ("*attention_out", "*down")
) -> Tuning:
    """Return bottlenecks on what linear layers write; they change nothing at first, since U = 0.

    Args:
      key: source of D, drawn from U(-1/sqrt(out), 1/sqrt(out)).
      params: the base.
      width: of the bottleneck, at least 1.
      targets: a `Spec` of the layers' paths; by default those that end attention and the feed-forward.

    Returns:
      A `Tuning`, at each target `{"houlsby": {"down": [..., out, width], "down_bias": [..., width], "up":
      [..., width, out], "up_bias": [..., out]}}`.

    Raises:
      ValueError: if the width is below 1, or a pattern matches no layer.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1; got {width}; a tenth of the model's is usual")
    places = _target(params, targets, "targets")
    part: dict[str, Any] = {}
    for (path, kernel), place_key in zip(places.items(), jax.random.split(key, len(places)), strict=True):
        *stack, _, out = kernel_shape(kernel)
        bound = out**-0.5
        down = jax.random.uniform(place_key, (*stack, out, width), minval=-bound, maxval=bound)
        own = {"down": down, "down_bias": jnp.zeros((*stack, width))}
        own |= {"up": jnp.zeros((*stack, width, out)), "up_bias": jnp.zeros((*stack, out))}
        _put(part, (*path, "houlsby"), own)
    return Tuning(part, {})


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _target(params: Params, spec: Spec, argument: str) -> dict[tuple[str, ...], Any]:
    """Return the kernels of the linear layers that a spec means, by their paths."""
    places = {"/".join(path): (path, kernel) for path, kernel in _linear_layers(params, ()).items()}
    chosen = match_names(tuple(places), spec, argument, "linear layers")
    return dict(place for name, place in places.items() if name in chosen)


def _linear_layers(params: Params, path: tuple[str, ...]) -> dict[tuple[str, ...], Any]:
    """Return the kernels, plain or packed, of all linear layers by their paths."""
    if not isinstance(params, dict):
        return {}
    if "kernel" in params:  # a scalar head's kernel is a vector
        return {path: params["kernel"]} if len(kernel_shape(params["kernel"])) > 1 else {}
    return {k: v for name, sub in params.items() for k, v in _linear_layers(sub, (*path, name)).items()}
