"""What is refused before anything is compiled: counts, nets and observations that cannot work."""

from typing import Any, Literal

import jax
import numpy as np

from jaxrl_align.actors.actions import Distribution, output_shape
from jaxrl_align.losses import Categorical
from jaxrl_align.nets.mlp import Net

__all__ = ["Critic", "check_at_least_one", "check_first_observation", "check_net"]

Critic = Literal["state", "sarsa", "max"]
"""What a net's critic output means: V(s) [], or Q(s, .) [A] whose next value is that of the action taken next
("sarsa", which learns the policy's Q) or of the best one ("max", which learns the optimal Q)."""


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


def check_net(
    net: Net, distribution: Distribution, critic: Critic, environment: Any, env_params: Any
) -> None:
    """Raise ValueError unless a net's outputs have the shapes that an environment and its critic need."""
    policy_shape = output_shape(distribution, environment.action_space(env_params))
    if critic not in ("state", "sarsa", "max"):
        raise ValueError(f"critic must be state, sarsa or max; got {critic!r}")
    if critic != "state" and distribution is not Categorical:
        raise ValueError(f"a critic of actions ({critic!r}) needs discrete actions; take critic='state'")
    value_shape = () if critic == "state" else policy_shape
    key = jax.random.key(0)
    obs, _ = jax.eval_shape(environment.reset, key, env_params)
    outputs = jax.eval_shape(lambda k, x: net.apply(net.init(k, x), x), key, obs)
    got = jax.tree.map(lambda x: x.shape, outputs)
    if got != (policy_shape, value_shape):
        raise ValueError(
            f"the net must return a policy of shape {policy_shape} and a value of shape {value_shape} for "
            f"{type(environment).__name__}; got {got}"
        )
