"""A mesh of devices for a whole run, `--mesh data=4,model=2`, and members side by side.

The mesh is set as jax's own (`jax.set_mesh`), and what is jitted under it is one program for all of its
devices, by XLA's partitioner. `placement` names the axes and places what a step makes; `devices.spreading`
places what a run begins with. A vmapped step needs no change either way: members never exchange a number.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrl_align.placement import AXES, FSDP, MEMBERS
from jaxrl_align.runtime.devices.spreading import LENIENT, count_members, is_meshed, spread

AUTO = "auto"


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
        count = count_cores()
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX has started: the devices are what they are
        return


def count_cores() -> int:
    """Return the CPU cores that this process may use: those it is pinned to, where the system can tell.

    XLA divides its sums by them, so a command that is given other cores than before may round differently.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        more = f", or JAX_NUM_CPU_DEVICES={-(-count // jax.process_count())} to try it"
        more = more if devices[0].platform == "cpu" else ""
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
    before = LENIENT.set(text == AUTO)
    try:
        with jax.set_mesh(make_mesh(text, members=members)):
            yield
    finally:
        LENIENT.reset(before)


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
    members = count_members(state)
    if is_meshed():
        return spread(state, members=True)
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if members % n == 0)
    if count == 1:
        return state
    mesh = jax.make_mesh((count,), ("members",), axis_types=(AxisType.Auto,), devices=devices[:count])
    return jax.device_put(state, NamedSharding(mesh, PartitionSpec("members")))
