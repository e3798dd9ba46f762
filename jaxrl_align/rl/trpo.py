"""Trust region policy optimisation: the natural gradient's step, as long as the KL divergence allows.

Schulman et al. 2015, arXiv:1502.05477; docs/lectures.md (B18, B19), which date it 2017 (erratum H7) and
say that it requires the Hessian. Only Hessian-vector products are needed; the Hessian is never formed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxrl_align.checks import check_counts, check_divides
from jaxrl_align.learner import begin, check_optimizer, epochs, make_optimizer
from jaxrl_align.losses import masked_mean, squared, surrogate
from jaxrl_align.rl.actor_critic import Advantages, Batch, gae_advantages, mean_kl, roll_out
from jaxrl_align.types import Actor, Learner, Metrics, Numeric, Params, State

SHRINK = 0.8
"""By how much each trial of the line search shortens the step."""


class TRPOHParams(NamedTuple):
    """The traced scalars of TRPO."""

    max_kl: Numeric = 0.01
    """delta: no update moves the policy further than this mean KL(before || after), in nats."""
    damping: Numeric = 0.1
    """Added to the Fisher matrix's diagonal, which a batch smaller than the policy leaves singular."""
    learning_rate: Numeric = 1e-3
    """Adam's rate for the critic, the only part that is trained by gradient descent."""
    gamma: Numeric = 0.99
    gae_lambda: Numeric = 0.97


class Step(NamedTuple):
    """The outcome of one trust-region step."""

    params: Params
    kl: jax.Array
    """[] mean KL(before || after), nats; at most delta."""
    improvement: jax.Array
    """[] by how much the surrogate objective rose; 0 if no trial was accepted."""
    trials: jax.Array
    """[] int32 lengths tried before one was accepted; all of them if none was."""


def fisher_vector_product(
    kl: Callable[[jax.Array], jax.Array], at: jax.Array, damping: Numeric
) -> Callable[[jax.Array], jax.Array]:
    """Return `v -> (H + damping I) v`, H the Hessian of `kl` at a point, by forward-over-reverse.

    Where `kl` is the divergence from the policy at that very point, H is the Fisher information matrix. One
    product costs about two gradients and no more memory than one.

    Args:
      kl: [P] -> [].
      at: [P] parameters.
      damping: [] >= 0.
    """
    gradient = jax.grad(kl)
    return lambda v: jax.jvp(gradient, (at,), (v,))[1] + damping * v


def conjugate_gradient(product: Callable[[jax.Array], jax.Array], b: jax.Array, iterations: int) -> jax.Array:
    """Solve `A x = b` for a symmetric positive definite A that is known by its products.

    `jax.scipy.sparse.linalg.cg` was tried first: under `vmap` over four members it returned lengths of 1e14
    on the CPU (jaxlib 0.10.2) where this recursion, and its own on one member, have a residual of 1e-7.

    Args:
      product: `v -> A v`, [P] -> [P].
      b: [P].
      iterations: at most; it stops moving once the residual is 1e-5 of b.

    Returns:
      x [P].
    """

    def iterate(carry: tuple, _: None) -> tuple:
        x, residual, direction = carry
        size, along = residual @ residual, product(direction)
        moving = size > 1e-10 * (b @ b)
        step = jnp.where(moving, size / jnp.where(moving, direction @ along, 1.0), 0.0)
        x, residual = x + step * direction, residual - step * along
        turn = (residual @ residual) / jnp.where(moving, size, 1.0)
        return (x, residual, jnp.where(moving, residual + turn * direction, direction)), None

    return jax.lax.scan(iterate, (jnp.zeros_like(b), b, b), None, iterations)[0][0]


def trust_region_step(
    objective: Callable[[Params], jax.Array],
    kl: Callable[[Params], jax.Array],
    params: Params,
    *,
    max_kl: Numeric,
    damping: Numeric,
    cg_iterations: int = 10,
    max_trials: int = 10,
) -> Step:
    """Raise `objective` within the trust region `kl <= max_kl`.

    The direction `x = (F + damping I)^-1 g` is found by conjugate gradients and first taken at the length
    `sqrt(2 max_kl / x (F + damping I) x)`, at which the quadratic model of the divergence meets the bound.
    The model may be wrong, so each trial's true divergence and objective are measured, and the step is
    shortened until the bound holds and the objective has risen; if it never does, nothing moves. Parameters
    of half precision move in float32 and are rounded at the end.

    Args:
      objective: parameters -> [], to be raised.
      kl: parameters -> [] nats, 0 at `params`.
      params: where to step from.
      max_kl: delta.
      damping: added to the Fisher matrix's diagonal.
      cg_iterations: of conjugate gradients.
      max_trials: lengths tried, each 0.8 times the one before.
    """
    wide = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), params)
    start, unravel = ravel_pytree(wide)
    flat_objective, flat_kl = (lambda x: objective(unravel(x))), (lambda x: kl(unravel(x)))
    before, gradient = jax.value_and_grad(flat_objective)(start)
    product = fisher_vector_product(flat_kl, start, damping)
    direction = conjugate_gradient(product, gradient, cg_iterations)
    length = jnp.sqrt(2.0 * max_kl / jnp.maximum(direction @ product(direction), jnp.finfo(start.dtype).tiny))

    def trial(carry: tuple) -> tuple:
        count = carry[0]
        candidate = start + length * SHRINK ** count.astype(start.dtype) * direction
        distance, rise = flat_kl(candidate), flat_objective(candidate) - before
        # A comparison with NaN is false, so a candidate that broke down is refused.
        accepted = (distance <= max_kl) & (rise > 0.0)
        kept = jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old), (candidate, distance, rise), carry[2:]
        )
        return count + 1, accepted, *kept

    nothing = (
        jnp.zeros((), jnp.int32),
        jnp.array(False),
        start,
        jnp.zeros_like(before),
        jnp.zeros_like(before),
    )
    trials, _, end, distance, rise = jax.lax.while_loop(
        lambda carry: ~carry[1] & (carry[0] < max_trials), trial, nothing
    )
    end = jax.tree.map(lambda new, old: new.astype(old.dtype), unravel(end), params)
    return Step(end, distance, rise, trials)


class TRPO(NamedTuple):
    """The parts of one TRPO learner; `make_trpo` says what each is."""

    actor: Actor
    critic_epochs: int
    critic_minibatches: int
    cg_iterations: int
    max_trials: int
    optimizer: optax.GradientTransformation
    advantages: Advantages


def make_trpo(
    actor: Actor,
    *,
    critic_epochs: int = 10,
    critic_minibatches: int = 4,
    cg_iterations: int = 10,
    max_trials: int = 10,
    optimizer: optax.GradientTransformation | None = None,
    advantages: Advantages = gae_advantages,
) -> Learner:
    """Build the learner: roll out, one trust-region step of the policy, then regression of the critic.

    Args:
      actor: whose `evaluate` returns distributions, and whose policy and critic share no parameter
        (`split_params`), as in `nets.mlp` without a shared trunk; the regression moves the critic alone, so
        that the bound on the divergence holds.
      critic_epochs: passes of the regression over each rollout.
      critic_minibatches: gradient steps per pass; must divide the number of trajectories.
      cg_iterations: of conjugate gradients.
      max_trials: of the line search.
      optimizer: the critic's update rule without its learning rate; default `make_optimizer()`.
      advantages: `Trajectory[B, T] -> (advantage, target)`.

    Returns:
      A `Learner` for `TRPOHParams`. Its metrics are the rollout's and `policy/kl`, `policy/improvement`,
      `policy/trials`, `policy/entropy_avg`, `loss/value_avg`.

    Raises:
      ValueError: if policy and critic share parameters, or a count is below 1; at trace time, if
        `critic_minibatches` does not divide.
    """
    if actor.evaluate is None or actor.split_params is None:
        raise ValueError(
            "TRPO needs a policy and a critic without common parameters; the actor's net declares no "
            "Net.split_params: build it with shared=False, or give your own net a split_params (nets with "
            "memory share theirs: take make_actor_critic)"
        )
    check_counts(critic_epochs=critic_epochs, cg_iterations=cg_iterations, max_trials=max_trials)
    optimizer = make_optimizer() if optimizer is None else check_optimizer(optimizer)
    settings = TRPO(
        actor, critic_epochs, critic_minibatches, cg_iterations, max_trials, optimizer, advantages
    )
    init_opt = lambda params: optimizer.init(actor.split_params(params)[1])
    init = functools.partial(begin, actor.init_params, init_opt, actor.init_env)
    return Learner(init, functools.partial(step_trpo, settings))


def step_trpo(settings: TRPO, state: State, batch: Any = None, frozen: Any = None) -> tuple[State, Metrics]:
    """Roll out, move the policy, fit the critic; pure."""
    key, key_rollout, key_critic = jax.random.split(state.key, 3)
    env_state, trajectory, rollout_metrics = roll_out(settings.actor, state, key_rollout, batch, frozen)
    data = Batch(trajectory, *settings.advantages(trajectory))
    state, metrics = move_policy(settings, state, data, frozen)
    state, errors = fit_critic(settings, state, data, key_critic, frozen)
    state = state._replace(step=optax.safe_increment(state.step), env_state=env_state, key=key)
    return state, rollout_metrics | metrics | errors


def move_policy(settings: TRPO, state: State, batch: Batch, frozen: Any) -> tuple[State, Metrics]:
    """Take the trust-region step of the policy's parameters."""
    policy, critic = settings.actor.split_params(state.params)
    trajectory = batch.trajectory
    evaluate = jax.vmap(settings.actor.evaluate, (None, None, 0))
    before = evaluate(state.params, frozen, trajectory)
    batch = batch._replace(behaviour=before.distribution)

    def objective(policy: Params) -> jax.Array:
        log_prob = evaluate(policy | critic, frozen, trajectory).log_prob
        loss = surrogate(log_prob, trajectory.log_prob, batch.advantage)
        return -masked_mean(loss, trajectory.mask)

    step = trust_region_step(
        objective,
        lambda policy: mean_kl(evaluate(policy | critic, frozen, trajectory), batch),
        policy,
        max_kl=state.hparams.max_kl,
        damping=state.hparams.damping,
        cg_iterations=settings.cg_iterations,
        max_trials=settings.max_trials,
    )
    metrics = {
        "policy/kl": step.kl,
        "policy/improvement": step.improvement,
        "policy/trials": step.trials,
        "policy/entropy_avg": masked_mean(before.entropy, trajectory.mask),
    }
    return state._replace(params=step.params | critic), metrics


def fit_critic(
    settings: TRPO, state: State, batch: Batch, key: chex.PRNGKey, frozen: Any
) -> tuple[State, Metrics]:
    """Regress the critic's parameters on the targets."""
    rows = batch.target.shape[0]
    check_divides(settings.critic_minibatches, rows, "critic_minibatches", "trajectories per rollout")
    policy, critic = settings.actor.split_params(state.params)
    evaluate = jax.vmap(settings.actor.evaluate, (None, None, 0))

    def loss(critic: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        value = evaluate(policy | critic, frozen, batch.trajectory).value
        error = masked_mean(squared(batch.target - value), batch.trajectory.mask)
        return error, {"loss/value_avg": error}

    state, metrics = epochs(
        loss,
        settings.optimizer,
        state._replace(params=critic),
        batch,
        key,
        num_epochs=settings.critic_epochs,
        minibatches=settings.critic_minibatches,
        learning_rate=state.hparams.learning_rate,
    )
    return state._replace(params=policy | state.params), metrics
