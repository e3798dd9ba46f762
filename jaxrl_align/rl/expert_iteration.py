"""Expert iteration: a network learns from the plans of a tree search at every state that it visits."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_align.checks import check_counts, check_divides, refuse
from jaxrl_align.learner import begin, check_optimizer, epochs, linear_decay, make_optimizer
from jaxrl_align.losses import categorical_kl, entropy, masked_mean, squared
from jaxrl_align.rl.actor_critic import gae_advantages, roll_out
from jaxrl_align.rl.tree_search import Leaf, search
from jaxrl_align.types import Actor, Learner, Metrics, Numeric, Params, State, Trajectory

Apply = Callable[[Params, jax.Array], tuple[jax.Array, jax.Array]]
"""`(params, obs) -> (logits [A], value [])`: the actor's network."""
Model = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
"""`(obs, action) -> (reward, continues, obs)`, continues 0 where the episode ends and else 1."""


class Plans(NamedTuple):
    """Training data of the network: N states and the plans made there."""

    obs: jax.Array
    """[N, ...]."""
    logits: jax.Array
    """[N, A] of the improved policy."""
    target: jax.Array
    """[N] of the value."""
    mask: jax.Array
    """[N] 1 for a real step."""


class SearchHParams(NamedTuple):
    """The traced scalars of learning from search."""

    learning_rate: Numeric = 1e-3
    gamma: Numeric = 0.99
    """Also what the learner's model is asked to discount by."""
    gae_lambda: Numeric = 0.95
    """The value's target is the lambda return of what was played."""
    value_coef: Numeric = 0.5


class Search(NamedTuple):
    """The parts of one search learner; `make_search_learner` says what each is."""

    actor: Actor
    apply: Apply
    model: Model
    simulations: int
    epochs: int
    minibatches: int
    total_steps: int | None
    optimizer: optax.GradientTransformation


def make_search_learner(
    actor: Actor,
    apply: Apply,
    model: Model,
    *,
    simulations: int = 16,
    epochs: int = 4,
    minibatches: int = 4,
    total_steps: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Learner:
    """Build expert iteration: plan at every state of a rollout, and move the network towards the plans.

        L = KL(improved policy || pi) + c_v (target - V)^2 / 2

    Args:
      actor: with discrete actions, whose observation is a state that the model continues from.
      apply: the actor's network, `(params, obs) -> (logits [A], value [])`.
      model: `(obs, action) -> (reward, continues, obs)`, known or learned; continues is 0 where the episode
        ends and else 1.
      simulations: of each search.
      epochs: passes over each rollout.
      minibatches: gradient steps per pass; must divide the number of steps.
      total_steps: the learning rate falls linearly to 0 over this many learner steps; None keeps it constant.
      optimizer: an update rule without its learning rate; default `make_optimizer()`.

    Returns:
      A `Learner` for `SearchHParams`. Its metrics are the rollout's and `loss/policy_avg`, `loss/value_avg`,
      `policy/entropy_avg` and `search/kl`, how far the plans are from the network before it moves.

    Raises:
      ValueError: at trace time, if `minibatches` does not divide.

    Source: Anthony, Tian & Barber 2017; Silver et al. 2018.
    """
    check_counts(simulations=simulations, epochs=epochs)
    optimizer = make_optimizer() if optimizer is None else check_optimizer(optimizer)
    settings = Search(actor, apply, model, simulations, epochs, minibatches, total_steps, optimizer)
    init = functools.partial(begin, actor.init_params, optimizer.init, actor.init_env)
    return Learner(init, functools.partial(step_search, settings))


def step_search(
    settings: Search, state: State, batch: Any = None, frozen: Any = None
) -> tuple[State, Metrics]:
    """Roll out, plan at every state, and learn from the plans; pure."""
    refuse(frozen=frozen)
    key, key_rollout, key_update = jax.random.split(state.key, 3)
    env_state, trajectory, rollout_metrics = roll_out(settings.actor, state, key_rollout, batch, None)
    state, metrics = distil(settings, state, trajectory, key_update)
    return state._replace(
        step=optax.safe_increment(state.step), env_state=env_state, key=key
    ), rollout_metrics | metrics


def plan_from(
    settings: Search, params: Params, gamma: jax.Array, obs: jax.Array, key: chex.PRNGKey
) -> jax.Array:
    """Return the improved policy's logits [A] at ONE observation."""

    def expand(obs: jax.Array, action: jax.Array) -> Leaf:
        reward, continues, after = settings.model(obs, action)
        return Leaf(reward, gamma * continues, after, *settings.apply(params, after))

    root = Leaf(jnp.zeros(()), jnp.ones(()), obs, *settings.apply(params, obs))
    return search(key, root, expand, simulations=settings.simulations).logits


def distillation_loss(
    settings: Search, params: Params, batch: Plans, hparams: Any
) -> tuple[jax.Array, Metrics]:
    """Return `KL(improved policy || pi) + c_v (target - V)^2 / 2`, masked means, and its metrics."""
    policy, value = jax.vmap(settings.apply, (None, 0))(params, batch.obs)
    metrics = {
        "loss/policy_avg": masked_mean(categorical_kl(batch.logits, policy), batch.mask),
        "loss/value_avg": masked_mean(squared(batch.target - value), batch.mask),
        "policy/entropy_avg": masked_mean(entropy(policy), batch.mask),
    }
    return metrics["loss/policy_avg"] + hparams.value_coef * metrics["loss/value_avg"], metrics


def distil(
    settings: Search, state: State, trajectory: Trajectory, key: chex.PRNGKey
) -> tuple[State, Metrics]:
    """Plan at every step of a rollout [B, T] and move the network towards the plans."""
    key_plan, key_order = jax.random.split(key)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), trajectory)
    rows = flat.mask.shape[0]
    check_divides(settings.minibatches, rows, "minibatches", "steps per rollout")
    plan = functools.partial(plan_from, settings, state.params, state.hparams.gamma)
    logits = jax.vmap(plan)(flat.obs, jax.random.split(key_plan, rows))
    plans = Plans(flat.obs, logits, gae_advantages(trajectory)[1].ravel(), flat.mask)
    loss = lambda params, batch: distillation_loss(settings, params, batch, state.hparams)
    before = loss(state.params, plans)[1]["loss/policy_avg"]
    rate = state.hparams.learning_rate * linear_decay(state.step, settings.total_steps)
    state, metrics = epochs(
        loss,
        settings.optimizer,
        state,
        plans,
        key_order,
        num_epochs=settings.epochs,
        minibatches=settings.minibatches,
        learning_rate=rate,
    )
    return state, metrics | {"search/kl": before, "learning_rate": rate}
