"""Members side by side on several devices, CPU cores among them.

A vmapped step needs no change: `jit` compiles for the devices of its arguments, and members never exchange a
number, so XLA splits the whole program along their axis. `jax.shard_map`, inside or around the scan, measured
the same speed.
"""

import os
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def use_cpu_devices(count: int | None = None) -> None:
    """Let XLA present every CPU core as a device; call this before JAX makes its first array.

    One CPU device spreads only its large operations over the cores, so members with small networks leave all
    but one idle. Once JAX has started this does nothing; where a GPU or TPU is the default it goes unused.

    Args:
      count: the number of devices; None means the cores that this process may use.
    """
    if count is None:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX has started: the devices are what they are
        return


def shard_members(state: Any) -> Any:
    """Spread the members over the largest number of local devices that divides the number of members.

    `run(jax.vmap(learner.step), shard_members(state), ...)` then trains the members in parallel, and a
    resumed run comes back to the same devices.

    Args:
      state: a pytree whose leaves all have the leading axis [M] of the members.

    Returns:
      The same values; with one device, or where only one divides M, the state itself.

    Raises:
      ValueError: the leaves do not share a leading axis.
    """
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(state)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(f"expected leaves that share a leading axis of members, got sizes {sorted(sizes)}")
    ((members,),) = sizes
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if members % n == 0)
    if count == 1:
        return state
    mesh = jax.make_mesh((count,), ("members",), axis_types=(AxisType.Auto,), devices=devices[:count])
    return jax.device_put(state, NamedSharding(mesh, PartitionSpec("members")))
