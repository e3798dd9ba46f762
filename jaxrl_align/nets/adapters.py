"""Tuning as an overlay: what is trained is a partial tree of parameters laid over a frozen base.

`overlay(base, part)` returns ordinary parameters, so whatever reads parameters (encoding, generation, scores,
probes) works with every way of tuning and depends on none. A part holds some of the base's own leaves
(`select`), or new leaves beside a linear layer's kernel, read by the kinds of `KINDS`:

    part, constants = init_lora(key, base, rank=8)
    base = overlay(base, constants)         # frozen: constants are never among the trained leaves
    hidden, _ = lm.encode(overlay(base, part), tokens)

Low-rank adapters (LoRA; Hu et al. 2021, arXiv:2106.09685) compute `x W + scale (x A) B`. (Lecture D5 prints
`A x B`; the product with shapes A [in, rank], B [rank, out] is the one meant.)
"""

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.nets.quantize import dequantise, is_packed, kernel_shape
from jaxrl_align.types import Params


class Kind(NamedTuple):
    """A way of tuning a linear layer by leaves of its own, beside its kernel under the kind's name."""

    trained: Callable[[tuple[int, ...]], dict[str, tuple[Any, ...]]]
    """`kernel's shape -> {leaf: its shape}` of what is trained; a size that may be anything is None."""
    apply: Callable[[dict[str, jax.Array], jax.Array, jax.Array], jax.Array]
    """`(leaves, x [..., in], y [..., out]) -> y'`: the layer's output with the adapter."""
    merge: Callable[[dict[str, jax.Array], jax.Array], jax.Array]
    """`(leaves, kernel [..., in, out]) -> kernel` of the plain layer that computes the same."""


def _apply_lora(own: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    a, b = own["a"].astype(x.dtype), own["b"].astype(x.dtype)
    return y + own["scale"].astype(x.dtype) * ((x @ a) @ b)


KINDS: dict[str, Kind] = {
    "lora": Kind(
        trained=lambda kernel: {"a": (*kernel[:-1], None), "b": (*kernel[:-2], None, kernel[-1])},
        apply=_apply_lora,
        merge=lambda own, kernel: kernel + own["scale"][..., None, None] * (own["a"] @ own["b"]),
    ),
}
"""The kinds that a linear layer reads, by the name of their leaves' node."""


class Tuning(NamedTuple):
    """The leaves that one way of tuning adds to a base."""

    part: Params
    """The trained leaves, a partial tree."""
    constants: Params
    """Leaves that the part needs and that must not move: `overlay` them on the base."""


def overlay(base: Params | None, part: Params) -> Params:
    """Return the base with a partial tree laid over it; without arithmetic or copies.

    Args:
      base: nested dicts of arrays; None, the part is all there is.
      part: a tree of the base's form, or a part of one; its leaves replace the base's. Leaves of `KINDS` are
        placed beside a kernel and need no counterpart.

    Raises:
      ValueError: for a leaf of another shape than the base's, or one that the base lacks; it names the path
        and what exists there.
    """
    return part if base is None else _lay(base, part, ())


def _lay(base: Any, part: Any, path: tuple[str, ...]) -> Any:
    if not isinstance(part, dict):
        if isinstance(base, dict) or jax.tree.map(jnp.shape, base) != jax.tree.map(jnp.shape, part):
            raise ValueError(
                f"a part must fit its base; got {_describe(part)} at {_name(path)}, where the base has "
                f"{_describe(base)}"
            )
        return part
    if not isinstance(base, dict):
        raise ValueError(
            f"a part must fit its base; got the entries {sorted(part)} at {_name(path)}, where the base has "
            f"{_describe(base)}"
        )
    laid = dict(base)
    for name, own in part.items():
        if name in KINDS and "kernel" in base:
            laid[name] = _beside(kernel_shape(base["kernel"]), base.get(name, {}), own, (*path, name))
        elif name in base:
            laid[name] = _lay(base[name], own, (*path, name))
        else:
            raise ValueError(
                f"a part must fit its base; got {_name((*path, name))}, but the base has "
                f"{', '.join(sorted(base))} there; the kinds {', '.join(KINDS)} lie beside a kernel"
            )
    return laid


def _beside(kernel: tuple[int, ...], base: Any, part: Any, path: tuple[str, ...]) -> dict[str, Any]:
    """Return a kind's leaves: the base's, which are constants, and the part's."""
    for leaf, wanted in KINDS[path[-1]].trained(kernel).items():
        got = jnp.shape(part[leaf]) if leaf in part else wanted
        if len(got) != len(wanted) or any(w not in (None, g) for w, g in zip(wanted, got, strict=True)):
            shape = str(wanted).replace("None", "any")
            raise ValueError(
                f"a part must fit its base; got shape {got} at {_name((*path, leaf))}, expected {shape} "
                f"beside a kernel of shape {kernel}"
            )
    return base | part


def _describe(tree: Any) -> str:
    if isinstance(tree, dict):
        return f"the entries {sorted(tree)}"
    shape = jax.tree.map(jnp.shape, tree)
    return f"shape {shape}" if isinstance(shape, tuple) else type(tree).__name__


def _name(path: tuple[str, ...]) -> str:
    return "/".join(path) or "the top"


def select(params: Params, spec: str | Sequence[str] | Callable[[str], bool]) -> Params:
    """Return the partial tree of some of the leaves: selective tuning.

        select(params, "*bias")                  # BitFit (Ben Zaken et al. 2022, arXiv:2106.10199)
        select(params, ["*norm/*", "head"])

    Args:
      params: nested dicts of arrays.
      spec: patterns of the shell's kind (`fnmatch`), of which a leaf's path, for example
        "layers/query/kernel", must match one; or a function of the path.

    Raises:
      ValueError: if nothing is selected; it names the leaves that there are.
    """
    names: list[str] = []

    def keep(name: str) -> bool:
        if callable(spec):
            return spec(name)
        return any(fnmatch.fnmatchcase(name, p) for p in ((spec,) if isinstance(spec, str) else spec))

    def walk(tree: Params, path: tuple[str, ...]) -> Params | None:
        if not isinstance(tree, dict):
            names.append("/".join(path))
            return tree if keep(names[-1]) else None
        found = {name: walk(sub, (*path, name)) for name, sub in tree.items()}
        return {name: sub for name, sub in found.items() if sub is not None} or None

    found = walk(params, ())
    if found is None:
        raise ValueError(f"spec={spec!r} selects no leaf; there are {', '.join(sorted(names))}")
    return found


def init_lora(
    key: chex.PRNGKey,
    params: Params,
    *,
    rank: int,
    scale: float = 1.0,
    targets: Sequence[str] | None = None,
) -> Tuning:
    """Return a low-rank adapter for linear layers of a base; it changes nothing at first, since B = 0.

    Args:
      key: source of A, drawn from U(-1/sqrt(in), 1/sqrt(in)).
      params: the base; a linear layer is a dict with a `kernel` of shape [..., in, out], plain or packed.
      rank: inner dimension, at least 1.
      scale: alpha / rank, the factor of `(x A) B`.
      targets: names of the layers to adapt; None, every linear layer.

    Returns:
      A `Tuning`, at each target `{"lora": {"a": [..., in, rank], "b": [..., rank, out]}}`, and the constants
      `{"lora": {"scale": [...]}}`.

    Raises:
      ValueError: if the rank is below 1, or a target names no linear layer of the base.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1; got {rank}")
    places = _linear_layers(params, ())
    names = {path[-1] for path in places}
    targets = tuple(sorted(names)) if targets is None else targets
    if missing := sorted(set(targets) - names):
        raise ValueError(f"targets must name linear layers; got {missing}, the model has {sorted(names)}")
    places = {path: shape for path, shape in places.items() if path[-1] in targets}
    part: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    for (path, shape), place_key in zip(places.items(), jax.random.split(key, len(places)), strict=True):
        *stack, fan_in, fan_out = shape
        bound = fan_in**-0.5
        a = jax.random.uniform(place_key, (*stack, fan_in, rank), minval=-bound, maxval=bound)
        _put(part, (*path, "lora"), {"a": a, "b": jnp.zeros((*stack, rank, fan_out))})
        _put(constants, (*path, "lora"), {"scale": jnp.full(stack, scale, jnp.float32)})
    return Tuning(part, constants)


def merge(params: Params, dtype: Any = None) -> Params:
    """Return overlaid parameters with every adapter folded into its kernel, for use without its cost.

    What remains of a kind without its trained leaves (constants on a bare base) is dropped.

    Args:
      params: a base and what was laid over it.
      dtype: packed kernels become plain ones of this type, with or without an adapter (`quantize`); None
        leaves those without one packed.

    Raises:
      ValueError: for an adapter on a packed kernel without `dtype`: packed again, it would lose what it has
        learnt.
    """
    return _merge(params, dtype, ())


def _merge(params: Any, dtype: Any, path: tuple[str, ...]) -> Any:
    if not isinstance(params, dict):
        return params
    plain = {
        name: _merge(sub, dtype, (*path, name)) for name, sub in params.items() if not _is_kind(params, name)
    }
    packed = is_packed(params.get("kernel"))
    if packed and dtype is not None:
        plain["kernel"] = dequantise(params["kernel"])
    for name in params.keys() - plain.keys():
        if is_complete(name, params[name]):
            kernel = plain["kernel"]
            if is_packed(kernel):
                raise ValueError(
                    f"merge must be given a dtype where the kernel is packed; got {name} over "
                    f"{', '.join(kernel)} at {_name(path)}; pass dtype=jnp.bfloat16, or keep it overlaid"
                )
            plain["kernel"] = KINDS[name].merge(params[name], kernel).astype(kernel.dtype)
    if packed and dtype is not None:
        plain["kernel"] = plain["kernel"].astype(dtype)
    return plain


def is_complete(kind: str, leaves: dict[str, jax.Array]) -> bool:
    """Return whether a kind's trained leaves are there; constants alone change nothing."""
    return KINDS[kind].trained((1, 1)).keys() <= leaves.keys()


def _is_kind(params: Params, name: str) -> bool:
    return name in KINDS and "kernel" in params


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _linear_layers(params: Params, path: tuple[str, ...]) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Return the shapes of all linear layers' kernels by their paths."""
    if not isinstance(params, dict):
        return {}
    if "kernel" in params:  # a scalar head's kernel is a vector
        shape = kernel_shape(params["kernel"])
        return {path: shape} if len(shape) > 1 else {}
    return {k: v for name, sub in params.items() for k, v in _linear_layers(sub, (*path, name)).items()}
