"""Numbers that must be finite: what a healthy run never shows, and what to do where it does."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl_align.types import State

_REWARD = "mend the reward model or the reward function, not the learning rate"
_ENVIRONMENT = (
    "the environment's rewards are not finite either: mend them, not the learning rate, unless actions that "
    "were nan came first"
)
_REMEDIES = {
    re.compile(r"(^|/)(rlhf_)?(reward|scores?)$|^rewards/.+/mean$"): _REWARD,
    re.compile(r"(^|/)kl$|approx_?kl"): "lower the learning rate, or hold the policy closer",
    re.compile(r"loss$|^loss/"): "lower the learning rate",
}
"""Metrics that must be finite and what to do, causes before what follows from them."""


def must_be_finite(name: str) -> bool:
    """Return whether a metric of this name is a reward, a KL or a loss, which are finite in a healthy run."""
    return any(pattern.search(name) for pattern in _REMEDIES)


def check_finite(state: Any, metrics: Mapping[str, Any], *, first_step: int = 0) -> None:
    """Raise for the first reward, KL or loss, or else the first learnt leaf, that is not finite.

    `runtime.loop.run` calls it; call it yourself on what `jax.jit(train(learner, n))(...)` returns. A mean
    over no episodes is nan in a healthy run and is passed over, as are hyperparameters and an environment's
    state.

    Args:
      state: a `State`, whose parameters and optimiser's state must be finite; another tree, which must hold
        no nan; or None.
      metrics: name -> [steps, ...], members in the further axes. What `vmap` left as [members, steps] is
        turned round where the state has as many members; where it cannot be told apart, from a square array
        or without a state, it is read as [steps, members].
      first_step: the number of the first row.

    Raises:
      FloatingPointError: naming the metric, its step and the members, or the leaf and its members; and the
        remedy.
    """
    if isinstance(state, State) and len(axis := np.shape(state.step)) == 1:
        metrics = {name: _steps_first(np.asarray(x), *axis) for name, x in metrics.items()}
    if (found := _first_bad_metric(metrics)) is not None:
        step, name, remedy = found
        if isinstance(state, State) and _bad_leaves(state.env_state, only="_return"):
            remedy = _ENVIRONMENT
        members = _name_members(~np.isfinite(metrics[name][step]))
        raise FloatingPointError(f"{name} is not finite at step {first_step + step}{members}; {remedy}")
    if state is not None:
        _check_leaves(state, first_step + max((len(x) for x in metrics.values()), default=0))


def _steps_first(values: np.ndarray, members: int) -> np.ndarray:
    """Return [steps, members] of [members, steps]."""
    turned = values.ndim > 1 and values.shape[0] == members != values.shape[1]
    return np.swapaxes(values, 0, 1) if turned else values


def _first_bad_metric(metrics: Mapping[str, Any]) -> tuple[int, str, str] | None:
    """Return step, name and remedy of the first metric that is not finite; within a step, the cause's."""
    found = []
    for name, values in metrics.items():
        rank = next((i for i, pattern in enumerate(_REMEDIES) if pattern.search(name)), None)
        bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
        if rank is not None and len(bad):
            found.append((int(bad[0]), rank, name))
    if not found:
        return None
    step, rank, name = min(found)
    return step, name, list(_REMEDIES.values())[rank]


def _check_leaves(state: Any, steps: int) -> None:
    learner = isinstance(state, State)
    learns = {"params": state.params, "optimiser": state.opt_state} if learner else state
    bad = _bad_leaves(learns, infinite=learner)
    if not bad:
        return
    name, leaf = bad[-1]  # sorted by name "params" comes last, and says more than Adam's moments
    what = "nan" if np.isnan(leaf).any() else "infinite"
    axis = np.shape(state.step) if learner else ()
    members = _name_members(~np.isfinite(leaf).reshape(*axis, -1).all(axis=-1)) if axis else ""
    raise FloatingPointError(
        f"{name} is {what} after {steps} steps{members}, although the loss is finite; lower the learning rate"
    )


def _bad_leaves(tree: Any, *, only: str = "", infinite: bool = False) -> list[tuple[str, np.ndarray]]:
    """Return the names and values of leaves with a nan, or an infinity, of those with `only` in the name."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "the state"
        if only in name and jnp.issubdtype(leaf.dtype, jnp.floating):
            is_bad = (lambda x, m: ~m.isfinite(x)) if infinite else (lambda x, m: m.isnan(x))
            if not getattr(leaf, "is_fully_addressable", True):  # other processes hold parts of it
                leaf = _gather_if(leaf, is_bad)
            values = np.asarray(leaf)
            found += [(name, values)] if is_bad(values, np).any() else []
    return found


def _gather_if(leaf: jax.Array, is_bad: Callable[[Any, Any], Any]) -> Any:
    """Return a leaf whole if any of it is bad, as all processes find together; or else an empty array."""
    if not jax.jit(lambda x: jnp.any(is_bad(x, jnp)))(leaf):
        return np.zeros(0)
    where: Any = leaf.sharding
    everywhere = NamedSharding(where.mesh, PartitionSpec())
    return jax.jit(lambda x: x, out_shardings=everywhere)(leaf)


def _name_members(bad: np.ndarray) -> str:
    """Return which members of [M, ...] are bad, in words; nothing where there is no axis."""
    if bad.ndim == 0:
        return ""
    members = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1)).tolist()
    return f" in members {members} of {len(bad)}"
