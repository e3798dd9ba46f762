"""Where arrays lie on a mesh of devices: constraints that a program carries, and nothing without a mesh.

The mesh is jax's own, set by `jax.set_mesh` (or `--mesh`, `runtime.mesh`), of axes with these names:

| axis | what is divided along it |
|---|---|
| `members` | the members of a vmapped learner |
| `data` | the rows of batches, environments; every device holds all weights |
| `fsdp` | the same rows, and every weight of a language model, which is gathered layer by layer |
| `model` | the inside of a language model's layers: heads, hidden units, the vocabulary |

XLA's partitioner places what is not named here. Without a constraint it computes a batch that was drawn
inside of a step on every device, and with weights divided along `fsdp` it exchanges activations, not weights.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

MEMBERS, DATA, FSDP, MODEL = AXES = ("members", "data", "fsdp", "model")
ROWS = (DATA, FSDP)
FREE = PartitionSpec.UNCONSTRAINED
SMALL = 2**14
"""Weights with fewer numbers are not divided along `fsdp`: to gather them would take longer than to read."""

Spec = tuple[Any, ...]
"""For each axis of an array: names of mesh axes, or None."""

_WIDENING = ("query", "key", "value", "gate", "up")
_NARROWING = ("attention_out", "down")
# By the leaf's path below a layer: its last axes, where the layer's outputs are divided, or its inputs.
_BY_OUTPUT: dict[tuple[str, ...], Spec] = {
    ("kernel",): (None, MODEL),
    ("bias",): (MODEL,),
    ("codes",): (MODEL, None),
    ("absmax",): (MODEL,),
    ("lora", "a"): (None, None),
    ("lora", "b"): (None, MODEL),
    ("dora", "a"): (None, None),
    ("dora", "b"): (None, MODEL),
    ("dora", "magnitude"): (MODEL,),
    ("ia3", "vector"): (MODEL,),
    ("houlsby", "down"): (MODEL, None),
    ("houlsby", "up"): (None, MODEL),
    ("houlsby", "up_bias"): (MODEL,),
}
_BY_INPUT: dict[tuple[str, ...], Spec] = {
    ("kernel",): (MODEL, None),
    ("codes",): (None, MODEL),
    ("absmax",): (None,),
    ("lora", "a"): (MODEL, None),
    ("lora", "b"): (None, None),
    ("dora", "a"): (MODEL, None),
    ("dora", "b"): (None, None),
    ("ia3_input", "vector"): (MODEL,),
    ("houlsby", "down"): (None, None),
    ("houlsby", "up"): (None, None),
}
_TABLES: dict[str, Spec] = {"tokens": (MODEL, None), "positions": (None, None), "head": (None, MODEL)}


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
        spec = _TABLES.get(names[-1]) if names else None
        return spec if spec is None or rank >= len(spec) else None
    below = tuple(names[len(names) - list(reversed(names)).index("layers") :])
    layer, leaf = below[0], below[1:]
    if len(leaf) == 3 and leaf[0] == "kernel":  # packed: kernel, kind, leaf
        leaf = leaf[2:]
    if layer in _WIDENING:
        return _BY_OUTPUT.get(leaf)
    return _BY_INPUT.get(leaf) if layer in _NARROWING else None


def fit_spec(shape: Sequence[int], spec: Spec, sizes: dict[str, int]) -> Spec:
    """Return a rule without the mesh axes that there are not, and those that do not divide the array.

    Args:
      shape: of the array.
      spec: a rule for its last axes.
      sizes: of the mesh's axes.

    Returns:
      A rule for all of its axes.
    """
    whole = (None,) * (len(shape) - len(spec)) + spec
    return tuple(_fit_axis(size, names, sizes) for size, names in zip(shape, whole, strict=True))


def _fit_axis(size: int, names: Any, sizes: dict[str, int]) -> Any:
    if names is None or names is FREE:
        return names
    there = tuple(n for n in ((names,) if isinstance(names, str) else names) if sizes.get(n, 1) > 1)
    if not there or size % math.prod(sizes[n] for n in there):
        return None
    return there[0] if len(there) == 1 else there


def place_rows(tree: Any, *, axis: int = 0) -> Any:
    """Return a tree whose arrays lie with their rows divided along `data` and `fsdp`; as it is without both.

    Args:
      tree: of arrays with the rows on one axis; those of lower rank stay as they are.
      axis: of the rows.

    Raises:
      ValueError: if the devices do not divide the rows: each would compute all of them.
    """
    sizes = _sizes()
    count = math.prod(sizes.get(name, 1) for name in ROWS)
    if count == 1:
        return tree

    def place(x: Any) -> Any:
        if not hasattr(x, "shape") or x.ndim <= axis:
            return x
        if x.shape[axis] % count:
            raise ValueError(
                f"the mesh's data and fsdp axes must divide the rows of a batch, or the environments; got "
                f"{x.shape[axis]} rows on {count} devices, each of which would compute all of them; take a "
                f"multiple of {count}"
            )
        spec: list[Any] = [FREE] * x.ndim
        spec[axis] = tuple(name for name in ROWS if sizes.get(name, 1) > 1)
        return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))

    return jax.tree.map(place, tree)


def place_weights(tree: Any, *names: str) -> Any:
    """Return a language model's leaves as its layers read them: gathered along `fsdp`, divided by `model`.

    Called where a layer reads its weights, within the scan over layers: XLA then gathers one layer at a time.

    Args:
      tree: an array, or nested dicts of arrays.
      names: the path of the tree, from "layers" on if it is within.
    """
    sizes = _sizes()
    if max(sizes.get(FSDP, 1), sizes.get(MODEL, 1)) == 1:
        return tree
    if isinstance(tree, dict):
        return {name: place_weights(sub, *names, name) for name, sub in tree.items()}
    spec = leaf_spec(names, tree.ndim)
    if spec is None or tree.ndim < len(spec):
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec(*fit_spec(tree.shape, spec, sizes)))


def read_gathered(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return a function that reads `place_weights`; its backward pass gathers them again, along `fsdp`.

    Kept for the backward pass, the gathered weights of all layers would stand on every device.
    """
    return jax.checkpoint(f, prevent_cse=False) if _sizes().get(FSDP, 1) > 1 else f


def output_shards(layer: str) -> int:
    """Return among how many devices a linear layer's outputs are divided."""
    return _sizes().get(MODEL, 1) if layer in _WIDENING else 1


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
    if rule is None or len(shape) < len(rule):
        return None
    spec = list(fit_spec(shape, rule, sizes))
    size = sizes.get(FSDP, 1)
    if size > 1 and math.prod(shape) >= SMALL:
        own = range(len(shape) - len(rule), len(shape))
        for axis in sorted(own, key=lambda i: (spec[i] is not None, -shape[i])):  # the free ones first
            both = (FSDP,) if spec[axis] is None else (spec[axis], FSDP)
            if _fit_axis(shape[axis], both, sizes) is not None:
                spec[axis] = _fit_axis(shape[axis], both, sizes)
                break
    return tuple(spec)


def _sizes() -> dict[str, int]:
    """Return the sizes of the axes of the mesh that is set; empty without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return {} if mesh.empty else dict(mesh.shape)
