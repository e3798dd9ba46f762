"""Where a language model's leaves lie on a mesh: by their names, parameters, parts and moments alike.

A linear layer that widens (queries, keys, values, the feed-forward's first) is divided along `model` by its
outputs, one that narrows by its inputs, so that only what it adds to the residual is summed between devices.
What lies beside a kernel follows the kernel: `KINDS` says along which of its axes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxrl_align.nets.kinds import KINDS
from jaxrl_align.nets.transformer_config import LINEARS
from jaxrl_align.placement import FSDP, MODEL, Spec, axis_sizes, fit_spec

SMALL = 2**14
"""Weights with fewer numbers are not divided along `fsdp`: to gather them would take longer than to read."""

_NARROWING = ("attention_out", "down")
_TABLES: dict[str, Spec] = {"tokens": (MODEL, None), "positions": (None, None), "head": (None, MODEL)}
_OWN: dict[tuple[str, ...], Spec] = {
    ("kernel",): ("in", "out"),
    ("bias",): ("out",),
    ("codes",): ("out", "in"),
    ("absmax",): ("out",),
}
"""A linear layer's own leaves: the axes of its kernel along which they lie. Packed ones are row by row."""


def leaf_spec(names: Sequence[str], rank: int) -> Spec | None:
    """Return how a leaf of a language model lies along `model`: the rule for its last axes.

    Args:
      names: the path of the leaf, for example ("params", "lm", "layers", "query", "kernel"); of an
        optimiser's moments too.
      rank: of the array; leading axes are layers and members.

    Returns:
      A rule for its last one or two axes, None for a leaf that has none, which lies whole on every device.
    """
    if "layers" not in names:
        rule = _TABLES.get(names[-1]) if names else None
    else:
        below = tuple(names[len(names) - list(reversed(names)).index("layers") :])
        rule = _rule_below(below[0], below[1:]) if below[0] in LINEARS else None
    return rule if rule is None or rank >= len(rule) else None


def _rule_below(layer: str, leaf: tuple[str, ...]) -> Spec | None:
    """Return the rule of a leaf of a linear layer, by its path below the layer."""
    packed = len(leaf) == 3 and leaf[0] == "kernel"
    axes: Any = _OWN.get(leaf[2:] if packed else leaf)
    if axes is None and len(leaf) == 2 and leaf[0] in KINDS:
        named: Any = ("in", "out")
        axes = KINDS[leaf[0]].trained(named).get(leaf[1])
    divided = "in" if layer in _NARROWING else "out"
    return None if axes is None else tuple(MODEL if axis == divided else None for axis in axes)


def weight_spec(names: Sequence[str], shape: Sequence[int], sizes: dict[str, int]) -> Spec | None:
    """Return how a language model's leaf is kept between steps: divided by `model`, and along `fsdp` too.

    Args:
      names: as in `leaf_spec`.
      shape: of the array.
      sizes: of the mesh's axes.

    Returns:
      A rule for all of its axes; None for a leaf that lies whole on every device.
    """
    rule = leaf_spec(names, len(shape))
    if rule is None:
        return None
    spec = list(fit_spec(shape, rule, sizes))
    if sizes.get(FSDP, 1) > 1 and math.prod(shape) >= SMALL:
        own = range(len(shape) - len(rule), len(shape))
        for axis in sorted(own, key=lambda i: (spec[i] is not None, -shape[i])):  # the free ones first
            both = (FSDP,) if spec[axis] is None else (spec[axis], FSDP)
            (fits,) = fit_spec((shape[axis],), (both,), sizes)
            if fits is not None:
                spec[axis] = fits
                break
    return tuple(spec)


def place_weights(tree: Any, *names: str) -> Any:
    """Return a language model's leaves as its layers read them: gathered along `fsdp`, divided by `model`.

    Called where a layer reads its weights, within the scan over layers: XLA then gathers one layer at a time,
    where otherwise it would exchange activations.

    Args:
      tree: an array, or nested dicts of arrays.
      names: the path of the tree, from "layers" on if it is within.
    """
    sizes = axis_sizes()
    if max(sizes.get(FSDP, 1), sizes.get(MODEL, 1)) == 1:
        return tree
    if isinstance(tree, dict):
        return {name: place_weights(sub, *names, name) for name, sub in tree.items()}
    spec = leaf_spec(names, tree.ndim)
    if spec is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec(*fit_spec(tree.shape, spec, sizes)))


def read_gathered(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return a function that reads `place_weights`; its backward pass gathers them again, along `fsdp`.

    Kept for the backward pass, the gathered weights of all layers would stand on every device.
    """
    return jax.checkpoint(f, prevent_cse=False) if axis_sizes().get(FSDP, 1) > 1 else f


def output_shards(layer: str) -> int:
    """Return among how many devices a linear layer's outputs are divided."""
    return 1 if layer in _NARROWING else axis_sizes().get(MODEL, 1)
