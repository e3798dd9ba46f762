"""Members side by side: the configuration that experiments share, and the training of all seeds at once.

A member is one seed, or one seed under one setting of the hyperparameters. Members exchange no number, so one
`vmap` of a learner trains all of them in one program, on as many devices as divide their number.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.checks import check_hparams
from jaxrl_align.runtime import loop
from jaxrl_align.runtime.devices.hosts import gather
from jaxrl_align.runtime.folder import RunConfig, RunFolder
from jaxrl_align.runtime.mesh import shard_members
from jaxrl_align.runtime.metrics import History
from jaxrl_align.types import Learner, Metrics, Params, State


@dataclass(frozen=True)
class MembersConfig(RunConfig):
    """The fields of an experiment of several members; subclasses add their own and set these defaults."""

    seed: int = 0
    """The key from which the members' keys are split."""
    seeds: int = 8
    """Members trained side by side."""

    def keys(self, offset: int = 0) -> chex.PRNGKey:
        """Return the members' keys [seeds], split from the key of `seed + offset`."""
        return jax.random.split(jax.random.key(self.seed + offset), self.seeds)

    def require(self, **least: int) -> None:
        """Raise ValueError unless each of these fields, every number of a tuple, is at least so large."""
        for name, number in least.items():
            value = getattr(self, name)
            if np.size(value) == 0 or np.min(value) < number:
                raise ValueError(f"{name} must be at least {number}; got {name}={value}")


class Trained(NamedTuple):
    """The result of `train_members`."""

    state: State
    """The learner's, every leaf [M, ...]."""
    history: History
    """Each metric [num_steps, M, ...]."""
    seconds: float
    """Of this call, compilation included; of a continued run only the rest of it."""
    folder: RunFolder


def train_members(
    learner: Learner,
    hparams: Any,
    config: MembersConfig,
    num_steps: int,
    *,
    keys: chex.PRNGKey | None = None,
    params: Params | None = None,
    frozen: Any = None,
    frozen_axis: int | None = 0,
    folder: RunFolder | None = None,
    **options: Any,
) -> Trained:
    """Train a learner's members in one program, in the run's folder: `vmap`, shard, `loop.run`.

    Args:
      learner: any; it is traced once for all members.
      hparams: its hyperparameters, each [] for all members or [M] one for each.
      config: names the folder, and the members' keys where none are given.
      num_steps: the length of the whole run, including what was done before an interruption.
      keys: [M]; None, `config.keys()`.
      params: where each member starts, leaves [M, ...]; None draws them.
      frozen: what the learner reads but never trains, leaves [M, ...]; see `frozen_axis`.
      frozen_axis: None where all members read the same frozen tree, whose leaves then have no axis [M].
      folder: of this training, where a run consists of several; None opens the run's own after the learner
        was traced, so that sizes which do not fit are reported before a folder is made.
      options: of `loop.run`: chunk (default a twentieth of the run), label, show, progress, checkpoint_every,
        on_chunk, batches.

    Raises:
      ValueError: no member, leaves without the members' axis, whatever the learner or `loop.run` refuses.
      FloatingPointError: a loss is nan or infinite.
    """
    check_hparams(hparams)
    keys = config.keys() if keys is None else keys
    axes = jax.tree.map(lambda x: 0 if jnp.ndim(x) else None, hparams)
    mapped = [x for x in jax.tree.leaves(hparams) if jnp.ndim(x)]
    _check_members(len(keys), hparams=mapped, params=params, frozen=() if frozen_axis is None else frozen)
    start = time.perf_counter()
    frozen = frozen if frozen is None or frozen_axis is None else shard_members(frozen)
    init = jax.jit(jax.vmap(learner.init, (0, axes, 0, frozen_axis)))
    state = shard_members(init(keys, hparams, params, frozen))

    def step(state: Any, batch: Any = None, frozen: Any = None) -> tuple[Any, Any]:
        return jax.vmap(learner.step, (0, None, frozen_axis))(state, batch, frozen)

    if folder is None:
        batches = options.get("batches")
        batch = None if batches is None else jax.tree.map(lambda x: x[0], batches(0, 1))
        jax.eval_shape(step, state, batch, frozen)
        folder = config.open_folder()
    options = {"chunk": max(1, num_steps // 20)} | options
    state, history = loop.run(step, state, num_steps, folder=folder, frozen=frozen, **options)
    return Trained(gather(state), history, time.perf_counter() - start, folder)


def cross_rates(
    keys: chex.PRNGKey, hparams: Any, learning_rates: Sequence[float]
) -> tuple[chex.PRNGKey, Any]:
    """Return the members of a grid, learning rates x seeds, as keys and hyperparameters.

    Args:
      keys: [M].
      hparams: a NamedTuple of scalars with a `learning_rate`.
      learning_rates: R of them.

    Returns:
      keys [R M] and hparams whose learning_rate is [R M]; the seed varies fastest, so that metrics reshape to
      [steps, R, M].
    """
    rates = jnp.repeat(jnp.asarray(learning_rates), len(keys))
    return jnp.tile(keys, len(learning_rates)), hparams._replace(learning_rate=rates)


def with_data(make_learner: Callable[[Any], Learner]) -> Learner:
    """Return the learner whose frozen tree is its data, so that every member may have data of its own.

    Args:
      make_learner: `data -> Learner` that draws its batches from them; called whenever `init` and `step` are
        traced, with one member's data.
    """

    def init(key: chex.PRNGKey, hparams: Any, params: Params | None = None, frozen: Any = None) -> State:
        return make_learner(frozen).init(key, hparams, params)

    def step(state: State, batch: Any = None, frozen: Any = None) -> tuple[State, Metrics]:
        return make_learner(frozen).step(state, batch)

    return Learner(init, step)


def _check_members(count: int, **trees: Any) -> None:
    if count < 1:
        raise ValueError("seeds must be at least 1; got seeds=0")
    for name, tree in trees.items():
        for leaf in jax.tree.leaves(tree):
            if jnp.shape(leaf)[:1] != (count,):
                raise ValueError(
                    f"every leaf of {name} must lead with the axis of the {count} members; got shape "
                    f"{jnp.shape(leaf)}"
                )
