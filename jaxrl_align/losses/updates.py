"""Three policy-gradient updates of lecture 002 as losses; each adds one term to the one before.

The first of the lecture's four, the vanilla update (B24), is `reinforce_loss`.

The lecture adds bare terms to a gradient; here each is a term of the *objective* `E_pi[...]`, and its
gradient is taken by the score function: the term, stopped, multiplies `log pi`. The lecture's gamma, which it
also uses for discounting, is called `drift_coef`.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxrl_align.losses._arrays import same_shape
from jaxrl_align.losses.policies import reinforce_loss
from jaxrl_align.types import Array, Numeric


def variance_stabilised_loss(log_prob: Array, ret: Array, baseline: Array) -> jax.Array:
    """Compute the loss of the variance-stabilised update.

        -log pi(a|s) (G - b)

    Args:
      log_prob: [...] nats.
      ret: [...] returns; gradient stopped.
      baseline: [...] of each step, may depend on its state but not on its action; gradient stopped.

    Returns:
      [...] losses.

    Raises:
      AssertionError: if the shapes differ.

    Source: docs/lectures.md (B25).
    """
    ret, baseline = same_shape(ret, baseline)
    return reinforce_loss(log_prob, ret - baseline)


def exploration_stabilised_loss(
    log_prob: Array,
    ret: Array,
    baseline: Array,
    *,
    exploration_coef: Numeric,
    kind: Literal["shannon", "tsallis"] = "shannon",
) -> jax.Array:
    """Compute the loss of the exploration-stabilised update, which keeps the policy's entropy up.

        -log pi (G - b - beta log pi)    "shannon": the objective gains beta H(pi)
        -log pi (G - b - 2 beta pi)      "tsallis": it gains -beta sum_a pi(a)^2, the lecture's -beta pi(a|s)

    Args:
      log_prob: [...] nats.
      ret: [...] returns; gradient stopped.
      baseline: [...] of each step; gradient stopped.
      exploration_coef: [] beta >= 0.
      kind: which entropy.

    Returns:
      [...] losses.

    Raises:
      AssertionError: if the shapes differ.
      ValueError: if `kind` is unknown.

    Source: docs/lectures.md (B26, H9).
    """
    log_prob, ret, baseline = same_shape(log_prob, ret, baseline, exploration_coef=exploration_coef)
    if kind not in ("shannon", "tsallis"):
        raise ValueError(f'kind must be "shannon" or "tsallis"; got {kind!r}')
    cost = log_prob if kind == "shannon" else 2.0 * jnp.exp(log_prob)
    return variance_stabilised_loss(log_prob, ret - exploration_coef * jax.lax.stop_gradient(cost), baseline)


def drift_stabilised_loss(
    log_prob: Array,
    ret: Array,
    baseline: Array,
    log_prob_pre: Array,
    *,
    exploration_coef: Numeric,
    drift_coef: Numeric,
    kind: Literal["shannon", "tsallis"] = "shannon",
) -> jax.Array:
    """Compute the loss of the drift-stabilised update, which keeps the policy near the pre-trained one.

        -log pi (G - b - beta log pi + gamma log P_pre)

    With Shannon's entropy and beta = gamma the two terms are -beta KL(pi || P_pre).

    Args:
      log_prob: [...] nats.
      ret: [...] returns; gradient stopped.
      baseline: [...] of each step; gradient stopped.
      log_prob_pre: [...] nats, of the same actions under the pre-trained model; gradient stopped.
      exploration_coef: [] beta >= 0.
      drift_coef: [] the lecture's gamma >= 0.
      kind: which entropy, see `exploration_stabilised_loss`.

    Returns:
      [...] losses.

    Raises:
      AssertionError: if the shapes differ.
      ValueError: if `kind` is unknown.

    Source: docs/lectures.md (B27, H9).
    """
    ret, log_prob_pre = same_shape(ret, log_prob_pre, drift_coef=drift_coef)
    return exploration_stabilised_loss(
        log_prob, ret + drift_coef * log_prob_pre, baseline, exploration_coef=exploration_coef, kind=kind
    )
