"""A mesh of devices for a whole run: `--mesh data=4,model=2`, and where a run's arrays lie on it.

The mesh is set as jax's own (`jax.set_mesh`), and what is jitted under it is one program for all of its
devices, by XLA's partitioner. `placement` names the axes and places what a step makes; this module places
what a run begins with. A vmapped step needs no change either way: members never exchange a number.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrl_align.placement import AXES, DATA, FSDP, MEMBERS, MODEL, ROWS, Spec, fit_spec, weight_spec

AUTO = "auto"
_ADVICE = {
    MEMBERS: "only a run of several members has such an axis; take data",
    DATA: "the run has no rows or environments to divide; leave it out",
    FSDP: "the run has no rows, and no language model, to divide; leave it out",
    MODEL: "only language models of a width and vocabulary that it divides have such an axis; take data",
}


def use_cpu_devices(count: int | None = None) -> None:
    """Let XLA present every CPU core as a device; call this before JAX makes its first array.

    One CPU device spreads only its large operations over the cores, so members with small networks leave all
    but one idle. A number that JAX_NUM_CPU_DEVICES gives stays. Once JAX has started this does nothing; where
    a GPU or TPU is the default it goes unused.

    Args:
      count: the number of devices; None means the cores that this process may use.
    """
    if count is None and "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    if count is None:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX has started: the devices are what they are
        return


def make_mesh(text: str, *, members: int = 1) -> Mesh:
    """Return the mesh that a text describes, over all devices of all processes.

    Args:
      text: sizes of axes, "data=4,model=2", whose product is the number of devices; or "auto": as many of the
        members side by side as divide both, and `fsdp` over what is left.
      members: of the run, for "auto".

    Raises:
      ValueError: for an axis that there is not, a size below 1, or sizes that do not fit the devices.
    """
    devices = jax.devices()
    if text == AUTO:
        side_by_side = math.gcd(members, len(devices))
        sizes = {MEMBERS: side_by_side, FSDP: len(devices) // side_by_side}
    else:
        sizes = _read_sizes(text)
    if math.prod(sizes.values()) != len(devices):
        count = math.prod(sizes.values())
        more = f", or JAX_NUM_CPU_DEVICES={count} to try it" if devices[0].platform == "cpu" else ""
        raise ValueError(
            f"--mesh must use all of the {len(devices)} {devices[0].platform} devices; got {text}, which are "
            f"{count}; for example --mesh data={len(devices)}{more}"
        )
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def _read_sizes(text: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in AXES or not size.isdecimal() or int(size) < 1 or name in sizes:
            raise ValueError(
                f"--mesh must be auto, or sizes of the axes {', '.join(AXES)}, each once; got {text!r}; for "
                "example --mesh data=4,model=2"
            )
        sizes[name] = int(size)
    return sizes


@contextlib.contextmanager
def use_mesh(text: str | None, *, members: int = 1) -> Iterator[None]:
    """Let everything inside run on the mesh that a text describes; with None, as it is.

    Args:
      text: as `make_mesh` reads it.
      members: of the run.
    """
    if text is None:
        yield
        return
    with jax.set_mesh(make_mesh(text, members=members)):
        yield


def is_meshed() -> bool:
    """Return whether a mesh is set."""
    return not jax.sharding.get_abstract_mesh().empty


def spread(tree: Any, *, members: bool = False) -> Any:
    """Return a state, or frozen weights, where they belong on the mesh that is set; without one, as they are.

    A language model's weights and their moments go by the rules of `placement`; what lies divided already
    (environments, members) stays so; all else lies whole on every device.

    Args:
      tree: of arrays on devices, or on the host and the same in every process.
      members: whether all leaves lead with the axis of the members.

    Raises:
      ValueError: if an axis of the mesh divides nothing of the tree that it could.
    """
    if not is_meshed():
        return tree
    mesh = jax.sharding.get_mesh()
    places = shardings(mesh, tree, members=members)
    return jax.tree.map(put_on, tree, places)


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
    size = _count_members(tree)
    if size % count:
        raise ValueError(
            f"the mesh's members axis must divide the members; got {size} members on {count} devices; take a "
            f"multiple of {count}, or fewer members side by side and data or fsdp for the rest"
        )


def _count_members(state: Any) -> int:
    sizes = {jax.numpy.shape(leaf)[:1] for leaf in jax.tree.leaves(state)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(f"expected leaves that share a leading axis of members, got sizes {sorted(sizes)}")
    ((members,),) = sizes
    return members


def spread_batch(rows: Any) -> Any:
    """Return batches from the host, leaves [steps, B, ...], on the mesh that is set: B on `data` and `fsdp`.

    Raises:
      ValueError: if the devices do not divide the rows.
    """
    if not is_meshed():
        return rows
    mesh = jax.sharding.get_mesh()
    sizes = dict(mesh.shape)

    def put(x: Any) -> jax.Array:
        spec = (None, ROWS) + (None,) * (np.ndim(x) - 2) if np.ndim(x) > 1 else ()
        return put_on(x, NamedSharding(mesh, PartitionSpec(*fit_spec(np.shape(x), spec, sizes))))

    return jax.tree.map(put, rows)


def settled(state: Any) -> Any:
    """Return the `out_shardings` of a step on the mesh that is set: state as it is, metrics everywhere."""
    everywhere = NamedSharding(jax.sharding.get_mesh(), PartitionSpec())
    return jax.tree.map(lambda leaf: leaf.sharding, state), everywhere


def check_axes(lowered: Any, state: Any, frozen: Any) -> None:
    """Raise ValueError if an axis of the mesh that is set divides nothing of a program.

    Args:
      lowered: the program, `jax.jit(f).lower(...)`.
      state: what it carries.
      frozen: what it reads.
    """
    if not is_meshed():
        return
    text = lowered.as_text()
    for axis, size in dict(jax.sharding.get_mesh().shape).items():
        if size > 1 and not re.search(rf'\{{[^{{}}]*"{axis}"[^{{}}]*\}}', text):
            held = sum(leaf.nbytes for leaf in jax.tree.leaves((state, frozen)))
            raise ValueError(
                f"the mesh's axis {axis}={size} divides nothing of this run: all of the work, and "
                f"{held / 1e6:.1f} MB of state and frozen weights, would be on each of its devices; "
                f"{_ADVICE[axis]}"
            )


def put_on(leaf: Any, place: jax.sharding.Sharding) -> jax.Array:
    """Return an array on the devices of a sharding, which may be other processes' too.

    Args:
      leaf: an array on devices, or one on the host that is the same in every process.
      place: where it goes.
    """
    if isinstance(leaf, jax.Array) and (leaf.sharding == place or not leaf.is_fully_addressable):
        return leaf if leaf.sharding == place else jax.jit(lambda x: x, out_shardings=place)(leaf)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = put_on(np.asarray(jax.random.key_data(leaf)), place)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    if jax.process_count() == 1:
        return jax.device_put(leaf, place)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, place, lambda index: host[index])


def shard_members(state: Any) -> Any:
    """Spread the members over the largest number of local devices that divides the number of members.

    Where a mesh is set they go along its axis `members`, if it has one.

    `run(jax.vmap(learner.step), shard_members(state), ...)` then trains the members in parallel, and a
    resumed run comes back to the same devices.

    Args:
      state: a pytree whose leaves all have the leading axis [M] of the members.

    Returns:
      The same values; with one device, or where only one divides M, the state itself.

    Raises:
      ValueError: the leaves do not share a leading axis.
    """
    members = _count_members(state)
    if is_meshed():
        return spread(state, members=True)
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if members % n == 0)
    if count == 1:
        return state
    mesh = jax.make_mesh((count,), ("members",), axis_types=(AxisType.Auto,), devices=devices[:count])
    return jax.device_put(state, NamedSharding(mesh, PartitionSpec("members")))
