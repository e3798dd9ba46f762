"""What one transition costs a network of action values: plain, categorical or by quantiles."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.losses import categorical_q_loss, huber, quantile_regression_loss, td_error
from jaxrl_align.rl.replay import Sample
from jaxrl_align.types import Params, ValueActor

__all__ = ["TransitionLoss", "c51_loss", "quantile_loss", "td_loss", "transition_loss"]

TransitionLoss = Callable[[chex.Array, chex.Array, chex.Array, chex.Array], tuple[chex.Array, chex.Array]]
"""`(out_tm1, r_t, discount_t, out_t) -> (loss, error)` of one transition: the net's output for the action
taken, [] or [K], and for the next action, whose gradient it stops; `error` sets the priority."""


def td_loss(criterion: Callable[[chex.Array], chex.Array] = huber) -> TransitionLoss:
    """Return the loss of plain action values: `criterion(r + discount q_t - q_tm1)`.

    Args:
      criterion: `losses.huber` (Mnih et al. 2015) or `losses.squared` (lecture 000, A8, halved).
    """

    def loss(
        out_tm1: chex.Array, r_t: chex.Array, discount_t: chex.Array, out_t: chex.Array
    ) -> tuple[chex.Array, chex.Array]:
        error = td_error(out_tm1, r_t, discount_t, out_t)
        return criterion(error), error

    return loss


def c51_loss(support: chex.Array) -> TransitionLoss:
    """Return C51's loss, the cross-entropy to the projected target; it is also the priority (Rainbow).

    Args:
      support: [K], the net's own.
    """

    def loss(
        out_tm1: chex.Array, r_t: chex.Array, discount_t: chex.Array, out_t: chex.Array
    ) -> tuple[chex.Array, chex.Array]:
        first = jnp.zeros((), jnp.int32)
        value = categorical_q_loss(out_tm1[None], first, r_t, discount_t, out_t[None], support)
        return value, value

    return loss


def quantile_loss(
    out_tm1: chex.Array, r_t: chex.Array, discount_t: chex.Array, out_t: chex.Array
) -> tuple[chex.Array, chex.Array]:
    """Compute QR-DQN's loss between the net's quantiles, [K] each; it is also the priority."""
    levels = (jnp.arange(out_tm1.shape[0]) + 0.5) / out_tm1.shape[0]
    value = quantile_regression_loss(out_tm1, levels, r_t + discount_t * out_t)
    return value, value


def transition_loss(
    actor: ValueActor, loss: TransitionLoss, *, double: bool = False
) -> Callable[[Params, Params, Sample, chex.PRNGKey], tuple[chex.Array, chex.Array]]:
    """Return `(params, target_params, transition, key) -> (loss, error)` for one transition.

    The target network judges the next action; it also selects it, unless `double`, when the online network
    selects (van Hasselt et al. 2016). Each of the forward passes draws its own noise.
    """

    def one(
        params: Params, target: Params, transition: Sample, key: chex.PRNGKey
    ) -> tuple[chex.Array, chex.Array]:
        key_now, key_next, key_select = jax.random.split(key, 3)
        out_tm1 = actor.evaluate(params, transition.obs, key_now)
        out_t = actor.evaluate(target, transition.next_obs, key_next)
        selector = actor.evaluate(params, transition.next_obs, key_select) if double else out_t
        action_t = jnp.argmax(actor.q_values(selector))
        return loss(out_tm1[transition.action], transition.reward, transition.discount, out_t[action_t])

    return one
