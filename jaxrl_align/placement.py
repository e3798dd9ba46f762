"""Where arrays lie on a mesh of devices: constraints that a program carries, and nothing without a mesh.

The mesh is jax's own, set by `jax.set_mesh` (or `--mesh`, `runtime.mesh`), of axes with these names:

| axis | what is divided along it |
|---|---|
| `members` | the members of a vmapped learner |
| `data` | the rows of batches, environments; every device holds all weights |
| `fsdp` | the same rows, and every weight of a language model, which is gathered layer by layer |
| `model` | the inside of a language model's layers: heads, hidden units, the vocabulary |

XLA's partitioner places what is not named. Without a constraint it computes a batch that was drawn inside of
a step on every device. Rows are placed here; a language model's weights by `nets.sharding`.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

MEMBERS, DATA, FSDP, MODEL = AXES = ("members", "data", "fsdp", "model")
ROWS = (DATA, FSDP)
FREE = PartitionSpec.UNCONSTRAINED

Spec = tuple[Any, ...]
"""For each axis of an array: names of mesh axes, or None."""


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
      tree: of arrays with the rows on one axis; those of lower rank stay as they are, and so do rows that
        are fewer than the devices.
      axis: of the rows.

    Raises:
      ValueError: if the devices do not divide the rows: each would compute all of them.
    """
    sizes, count = axis_sizes(), row_devices()
    if count == 1:
        return tree

    def place(x: Any) -> Any:
        if not hasattr(x, "shape") or x.ndim <= axis or x.shape[axis] < count:
            return x
        if x.shape[axis] % count:
            raise ValueError(
                f"the mesh's data and fsdp axes must divide the rows of a batch or minibatch, and the "
                f"environments; got {x.shape[axis]} of them on {count} devices, each of which would compute "
                f"all; take a multiple of {count}"
            )
        spec: list[Any] = [FREE] * x.ndim
        spec[axis] = tuple(name for name in ROWS if sizes.get(name, 1) > 1)
        return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))

    return jax.tree.map(place, tree)


def row_devices() -> int:
    """Return how many devices rows are divided among; 1 without a mesh."""
    sizes = axis_sizes()
    return math.prod(sizes.get(name, 1) for name in ROWS)


def axis_sizes() -> dict[str, int]:
    """Return the sizes of the axes of the mesh that is set; empty without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return {} if mesh.empty else dict(mesh.shape)
