"""Checks made before anything is compiled: counts, and observations that cannot work."""

from typing import Any

import jax
import numpy as np


def check_at_least_one(**counts: int) -> None:
    """Raise ValueError for a count below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1; got {name}={count}")


def check_first_observation(environment: Any, env_params: Any) -> None:
    """Raise ValueError if an environment starts with an observation that is not finite.

    Only a start is played; parameters that are traced cannot be and are passed over.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(env_params)):
        return
    with jax.ensure_compile_time_eval():
        obs, _ = environment.reset(jax.random.key(0), env_params)
        bad = int(np.sum(~np.isfinite(np.asarray(obs, np.float64))))
    if bad:
        raise ValueError(
            f"observations must be finite; the first one of {type(environment).__name__} has {bad} of "
            f"{np.size(obs)} entries that are NaN or infinite: correct its reset, or replace them there"
        )
