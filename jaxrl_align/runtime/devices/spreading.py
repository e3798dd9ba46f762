"""Where a run's arrays lie on the mesh that is set: its state, its frozen weights, its batches."""

import re
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrl_align.data.batches import HostBatches
from jaxrl_align.nets.sharding import SMALL, leaf_spec, weight_spec
from jaxrl_align.placement import DATA, FSDP, MEMBERS, MODEL, ROWS, Spec, fit_spec
from jaxrl_align.runtime.devices.hosts import several

_ADVICE = {
    MEMBERS: "only a run of several members has such an axis; take data",
    DATA: "the run has no rows or environments to divide; leave it out",
    FSDP: "the run has no rows, and no language model, to divide; leave it out",
    MODEL: "only language models of a width and vocabulary that it divides have such an axis; take data",
}


LENIENT: ContextVar[bool] = ContextVar("LENIENT", default=False)
"""Whether the mesh was made for the run ("auto"): an axis may then divide nothing of one of its stages."""


def is_meshed() -> bool:
    """Return whether a mesh is set."""
    return not jax.sharding.get_abstract_mesh().empty


def current_mesh() -> Mesh:
    """Return the mesh that is set, with its devices."""
    get: Any = getattr(jax.sharding, "get_mesh", None)  # jax 0.8 has none, but arrays tell
    return get() if get is not None else jax.jit(lambda: 0, out_shardings=PartitionSpec())().sharding.mesh


def spread(tree: Any, *, members: bool = False) -> Any:
    """Return a state, or frozen weights, where they belong on the mesh that is set; without one, as they are.

    A language model's weights and their moments go by the rules of `placement`; what lies divided already
    (environments, members) stays so; all else lies whole on every device.

    Args:
      tree: of arrays on devices, or on the host and the same in every process.
      members: whether all leaves lead with the axis of the members.

    Raises:
      ValueError: if the axis `members` does not divide the members.
    """
    if not is_meshed():
        return tree
    mesh = current_mesh()
    places = shardings(mesh, tree, members=members)
    return jax.tree.map(put_on, tree, places)


def put_weight(leaf: Any, *names: str) -> jax.Array:
    """Return a language model's array from the host where it belongs: on the mesh that is set, or a device.

    Args:
      leaf: the same in every process.
      names: its path, as in `placement.leaf_spec`.
    """
    if not is_meshed():
        return jax.device_put(leaf)
    mesh = current_mesh()
    return put_on(leaf, NamedSharding(mesh, PartitionSpec(*_spec_of(names, leaf, dict(mesh.shape), False))))


def shardings(mesh: Mesh, tree: Any, *, members: bool = False) -> Any:
    """Return where the leaves of a tree, arrays or their shapes, belong on a mesh: a `NamedSharding` each."""
    sizes = dict(mesh.shape)
    if members:
        _check_members(tree, sizes.get(MEMBERS, 1))

    def place(path: Any, leaf: Any) -> NamedSharding:
        spec = _spec_of(names_of(path), leaf, sizes, members)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(place, tree)


def names_of(path: Any) -> tuple[str, ...]:
    """Return a leaf's path as names; a field of a NamedTuple is none of a dictionary's, and has a dot."""
    return tuple(
        f".{key.name}" if isinstance(key, jax.tree_util.GetAttrKey) else str(getattr(key, "key", key))
        for key in path
    )


def _spec_of(names: tuple[str, ...], leaf: Any, sizes: dict[str, int], members: bool) -> Spec:
    shape = np.shape(leaf)
    now = _lies(leaf)
    divided = members or MEMBERS in now[:1]
    if (spec := weight_spec(names, shape, sizes)) is not None:
        return fit_spec(shape, (MEMBERS, *spec[1:]), sizes) if divided and shape else spec
    if any(axis is not None for axis in now):
        return fit_spec(shape, (MEMBERS, *now[1:]) if divided else now, sizes)
    return fit_spec(shape, (MEMBERS,) + (None,) * (len(shape) - 1), sizes) if divided and shape else ()


def _lies(leaf: Any) -> Spec:
    """Return how an array already lies on the mesh that is set, for each of its axes."""
    placed = getattr(leaf, "sharding", None)
    if not isinstance(placed, NamedSharding) or placed.is_fully_replicated:
        return (None,) * np.ndim(leaf)
    return tuple(placed.spec) + (None,) * (np.ndim(leaf) - len(placed.spec))


def _check_members(tree: Any, count: int) -> None:
    size = count_members(tree)
    if size % count and not LENIENT.get():
        raise ValueError(
            f"the mesh's members axis must divide the members; got {size} members on {count} devices; take a "
            f"multiple of {count}, or fewer members side by side and data or fsdp for the rest"
        )


def read_batches(batches: Callable[[int, int], Any], first_step: int, steps: int) -> Any:
    """Return batches from the host, [steps, B, ...], with B along `data` and `fsdp` of the mesh that is set.

    Of `data.HostBatches` a process reads only the rows that its own devices hold.

    Args:
      batches: `(first step, steps) -> tree of arrays`.
      first_step: the number of the first.
      steps: how many.
    """
    if not is_meshed():
        return batches(first_step, steps)
    mesh = current_mesh()
    if not (isinstance(batches, HostBatches) and several()):
        return jax.tree.map(lambda x: put_on(x, _row_place(mesh, np.shape(x))), batches(first_step, steps))
    count = batches.batch_size
    indices: Any = _row_place(mesh, (steps, count)).addressable_devices_indices_map((steps, count))
    bounds = [index[1].indices(count) for index in indices.values()]
    begin, end = min(b[0] for b in bounds), max(b[1] for b in bounds)

    def put(own: np.ndarray) -> jax.Array:
        shape = (steps, count, *own.shape[2:])
        held = lambda index: slice(*(i - begin for i in index[1].indices(count)[:2]))
        read = lambda index: own[:, held(index)]
        return jax.make_array_from_callback(shape, _row_place(mesh, shape), read)

    return jax.tree.map(put, batches(first_step, steps, rows=slice(begin, end)))


def _row_place(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    spec = (None, ROWS) + (None,) * (len(shape) - 2) if len(shape) > 1 else (None,) * len(shape)
    return NamedSharding(mesh, PartitionSpec(*fit_spec(shape, spec, dict(mesh.shape))))


def settled(state: Any) -> Any:
    """Return the `out_shardings` of a step on the mesh that is set: state as it is, metrics everywhere."""
    everywhere = NamedSharding(current_mesh(), PartitionSpec())
    return jax.tree.map(lambda leaf: leaf.sharding, state), everywhere


def check_axes(lowered: Any, state: Any, frozen: Any) -> None:
    """Refuse an axis of the mesh that is set along which nothing of a program is divided; warn of the rest.

    Args:
      lowered: the program, `jax.jit(f).lower(...)`.
      state: what it carries.
      frozen: what it reads.

    Raises:
      ValueError: an axis divides nothing; it says what would lie whole on every device.
    """
    if not is_meshed():
        return
    text = lowered.as_text()
    if "sdy.mesh" not in text:  # a jax that writes shardings without the names of axes
        return
    for axis, size in dict(current_mesh().shape).items():
        if size > 1 and not re.search(rf'<@\w+, \[[^\]]*"{axis}"', text):
            if LENIENT.get():
                continue
            held, names = _largest(jax.tree_util.tree_leaves_with_path((state, frozen)))
            raise ValueError(
                f"the mesh's axis {axis}={size} divides nothing of this run: all of the work, and "
                f"{held} of state and frozen weights ({names}), would be on each of its devices; "
                f"{_ADVICE[axis]}"
            )
    if whole := _undivided((state, frozen)):
        held, names = _largest(whole)
        warnings.warn(
            f"the mesh's axes do not divide some weights: {held} ({names}) lie whole on every device; take "
            "other sizes",
            stacklevel=3,
        )


def _undivided(tree: Any) -> list[tuple[Any, Any]]:
    """Return a language model's weights, with their paths, that no axis of the mesh divides."""
    sizes = dict(current_mesh().shape)
    kinds = sizes.get(MODEL, 1), sizes.get(FSDP, 1)
    if max(kinds) == 1:
        return []

    def is_whole(path: Any, leaf: Any) -> bool:
        names = names_of(path)
        rule = leaf_spec(names, np.ndim(leaf))
        divisible = rule is not None and (sizes.get(FSDP, 1) > 1 or any(rule))
        return divisible and leaf.size >= SMALL and not any(weight_spec(names, leaf.shape, sizes) or ())

    return [item for item in jax.tree_util.tree_leaves_with_path(tree) if is_whole(*item)]


def _largest(leaves: Any) -> tuple[str, str]:
    """Return how large leaves are in all, and the largest few of them in words."""
    size = lambda leaf: leaf.size * leaf.dtype.itemsize
    total = sum(size(leaf) for _, leaf in leaves)
    first = sorted(leaves, key=lambda item: -size(item[1]))[:3]
    words = (f"{'/'.join(names_of(path)[-3:])} {size(leaf) / 1e6:.2g} MB" for path, leaf in first)
    return f"{total / 1e6:.2g} MB", ", ".join(words)


def put_on(leaf: Any, place: jax.sharding.Sharding) -> jax.Array:
    """Return an array on the devices of a sharding, which may be other processes' too.

    Args:
      leaf: an array on devices, or one on the host that is the same in every process.
      place: where it goes.
    """
    leaf = leaf if hasattr(leaf, "dtype") else jax.numpy.asarray(leaf)
    if isinstance(leaf, jax.Array) and (leaf.sharding == place or not leaf.is_fully_addressable):
        return leaf if leaf.sharding == place else jax.jit(lambda x: x, out_shardings=place)(leaf)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = put_on(np.asarray(jax.random.key_data(leaf)), place)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    if jax.process_count() == 1:
        return jax.device_put(leaf, place)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, place, lambda index: host[index])


def count_members(state: Any) -> int:
    """Return the size of the axis that all leaves lead with.

    Raises:
      ValueError: if they do not share one.
    """
    sizes = {jax.numpy.shape(leaf)[:1] for leaf in jax.tree.leaves(state)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(f"expected leaves that share a leading axis of members, got sizes {sorted(sizes)}")
    ((members,),) = sizes
    return members
