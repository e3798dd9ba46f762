"""Deep Q-learning: the lecture's online algorithm, and DQN with its options up to Rainbow, over any actor.

The learner knows no environment: a `ValueActor` acts epsilon-greedily and judges. Double Q-learning, n-step
returns, prioritised replay and a distributional loss are arguments here; duelling, noisy and distributional
heads are the net's. Rainbow (Hessel et al. 2018) is all of them at once.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_align.learner import descend, linear_decay, make_optimizer
from jaxrl_align.losses import squared
from jaxrl_align.rl.q_losses import TransitionLoss, td_loss, transition_loss
from jaxrl_align.rl.replay import ReplayState, Sample, make_replay, replay_bytes
from jaxrl_align.types import Learner, Metrics, Params, State, Transition, ValueActor

__all__ = [
    "DQNHParams",
    "Experience",
    "check_rewards",
    "make_dqn",
    "make_online_q",
    "memory_bytes",
]


class DQNHParams(NamedTuple):
    """The traced scalars of DQN; give any field a leading axis and vmap to sweep it."""

    learning_rate: Any = 2.5e-4
    gamma: Any = 0.99
    epsilon_start: Any = 1.0
    epsilon_end: Any = 0.05
    epsilon_steps: Any = 10_000.0
    """Environment steps, all environments together, over which epsilon falls linearly."""
    target_rate: Any = 1.0
    """How far the target net moves towards the online net: 1 copies it, less is Polyak averaging."""
    target_period: Any = 500.0
    """Gradient steps between two moves of the target net."""
    alpha: Any = 0.6
    """Prioritised replay: 0 draws uniformly, 1 in proportion to |error|."""
    beta_start: Any = 0.4
    """Prioritised replay: exponent of the importance weights; it rises linearly to 1."""
    beta_steps: Any = 100_000.0
    """Environment steps over which beta rises."""


class Experience(NamedTuple):
    """What DQN carries besides its networks."""

    envs: Any
    replay: ReplayState
    updates: chex.Array
    """[] int32 gradient steps taken."""
    first_bad: chex.Array
    """[2] int32 (environment, its step) of the first reward that was not finite; -1 while there is none."""


def memory_bytes(actor: ValueActor, capacity: int, *, prioritised: bool = False) -> int:
    """Return the bytes that the replay of `make_dqn` will take for each member, before any is allocated."""
    return replay_bytes(_example(actor), capacity, prioritised=prioritised)


def check_rewards(state: State) -> None:
    """Say which environment and step paid a reward that was not finite; call it after each chunk.

    From that step on the member has learnt nothing, and its `loss` is NaN.

    Args:
      state: of `make_dqn` or `make_online_q`, with or without a leading axis of members.

    Raises:
      FloatingPointError: naming the first such environment and step of every member that met one.
    """
    bad = jax.device_get(state.env_state.first_bad).reshape(-1, 2)
    found = [
        (f"member {i}: " if len(bad) > 1 else "") + f"environment {env}, step {step}"
        for i, (env, step) in enumerate(bad)
        if step >= 0
    ]
    if found:
        raise FloatingPointError(
            f"a reward is nan or infinite at {'; '.join(found)}; nothing was learnt from it or after it; "
            f"mend the environment's reward"
        )


def _rollout_shapes(actor: ValueActor) -> Transition:
    """Return the shapes [T, B, ...] of a rollout, without running it."""

    def one_rollout(key: chex.PRNGKey) -> Transition:
        key_params, key_env, key_act = jax.random.split(key, 3)
        params, envs = actor.init_params(key_params), actor.init_env(key_env)
        return actor.rollout(params, envs, key_act, 1.0)[1]

    return jax.eval_shape(one_rollout, jax.random.key(0))


def _example(actor: ValueActor) -> Transition:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), _rollout_shapes(actor))


def _first_bad(known: chex.Array, reward: chex.Array, steps_before: chex.Array) -> chex.Array:
    bad = ~jnp.isfinite(reward)
    step, env = jnp.divmod(jnp.argmax(bad.ravel()), reward.shape[1])
    found = jnp.stack([env, steps_before + step]).astype(jnp.int32)
    return jnp.where((known[1] < 0) & jnp.any(bad), found, known)


def _towards(start: chex.Numeric, end: chex.Numeric, fraction: chex.Numeric) -> chex.Array:
    return start + (end - start) * jnp.clip(fraction, 0.0, 1.0)


def _check_counts(capacity: int, rollout: int, updates: int, warmup_steps: int) -> None:
    if updates < 1 or warmup_steps < 0:
        raise ValueError(
            f"updates must be at least 1 and warmup_steps at least 0; got updates={updates}, "
            f"warmup_steps={warmup_steps}"
        )
    if capacity % rollout:
        raise ValueError(
            f"capacity must be a multiple of the transitions of a rollout (num_envs * num_steps); got "
            f"capacity={capacity}, {rollout} a rollout; try capacity={-(-capacity // rollout) * rollout}"
        )


def _keep_if(healthy: chex.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(healthy, a, b), new, old)


def make_dqn(
    actor: ValueActor,
    *,
    capacity: int = 10_000,
    batch_size: int = 32,
    updates: int = 1,
    warmup_steps: int = 1_000,
    n_step: int = 1,
    double: bool = False,
    prioritised: bool = False,
    loss: TransitionLoss | None = None,
    optimizer: optax.GradientTransformation | None = None,
    total_steps: int | None = None,
) -> Learner:
    """Build DQN: act for one rollout, store it, then take `updates` gradient steps on replayed minibatches.

        loss = w (r + gamma^n max_a Q_target(s_n, a) - Q(s_0, a_0))^2 / 2   or Huber, C51, quantiles

    A termination ends the target, a truncation does not. `init` fills the replay with `warmup_steps` of
    random play. `frozen` holds the target network.

    Args:
      actor: the domain.
      capacity: transitions kept, a multiple of the environments times the steps of a rollout.
      batch_size: transitions a gradient step.
      updates: gradient steps a rollout (the lecture's T updates per added experience).
      warmup_steps: environment steps of random play before the first update.
      n_step: steps a target spans; the replay stores single steps.
      double: the online network selects the next action.
      prioritised: draw by |error|^alpha, with importance weights.
      loss: `td_loss(squared)` (the default, the lecture's), `td_loss(huber)`, `c51_loss(support)` or
        `quantile_loss`. Huber's gradient is that of a median: where rare terminations are all that holds the
        values down, as in CartPole, it lets them grow without bound (measured; the square does not).
      optimizer: an update rule without its learning rate; default Adam with gradients clipped to norm 10.
      total_steps: the learning rate falls linearly to 0 over this many learner steps; None keeps it constant.

    Returns:
      A `Learner`; its hparams are `DQNHParams` or anything with these fields. Its metrics are the rollout's,
      `loss`, `td_error` (absolute) and `grad_norm`, means over the gradient steps, `epsilon` and `beta`.

    Raises:
      ValueError: before any compilation, for sizes that do not fit one another.
    """
    optimizer = optimizer or make_optimizer(max_grad_norm=10.0, eps=1e-8)
    steps, lanes = _rollout_shapes(actor).reward.shape
    replay = make_replay(capacity, batch_size, lanes=lanes, n_step=n_step, prioritised=prioritised)
    _check_counts(capacity, steps * lanes, updates, warmup_steps)
    one = transition_loss(actor, loss or td_loss(squared), double=double)
    prefill = -(-max(warmup_steps, n_step * lanes) // (steps * lanes))

    def init(key: chex.PRNGKey, hparams: Any, params: Params | None = None, frozen: Any = None) -> State:
        key_params, key_env, key_fill, key = jax.random.split(key, 4)
        params = actor.init_params(key_params) if params is None else params
        hparams = jax.tree.map(jnp.float32, hparams)
        zero = jnp.zeros((), jnp.int32)
        experience = Experience(
            actor.init_env(key_env), replay.init(_example(actor)), zero, jnp.full(2, -1, jnp.int32)
        )

        def play(carry: tuple[Experience, chex.PRNGKey], i: chex.Array) -> tuple[Any, None]:
            experience, key = carry
            key, key_act = jax.random.split(key)
            experience, _ = collect(params, experience, key_act, 1.0, i)
            return (experience, key), None

        (experience, _), _ = jax.lax.scan(play, (experience, key_fill), jnp.arange(prefill))
        target = jax.tree.map(jnp.copy, params) if frozen is None else frozen
        return State(params, optimizer.init(params), zero, hparams, target, experience, key)

    def collect(
        params: Params, experience: Experience, key: chex.PRNGKey, epsilon: chex.Numeric, round_: chex.Array
    ) -> tuple[Experience, Metrics]:
        envs, transition, metrics = actor.rollout(params, experience.envs, key, epsilon)
        first_bad = _first_bad(experience.first_bad, transition.reward, round_ * steps)
        memory = replay.add(experience.replay, transition)
        return experience._replace(envs=envs, replay=memory, first_bad=first_bad), metrics

    def batch_loss(
        params: Params, target: Params, batch: Sample, key: chex.PRNGKey
    ) -> tuple[chex.Array, chex.Array]:
        # One draw of a noisy net's weights serves the batch, as in Fortunato et al. 2018.
        losses, errors = jax.vmap(one, (None, None, 0, None))(params, target, batch, key)
        return jnp.mean(batch.weight * losses), errors

    def update(
        carry: Any, keys: chex.PRNGKey, hparams: Any, learning_rate: chex.Array, beta: chex.Array
    ) -> tuple[Any, Metrics]:
        params, opt_state, target, memory, count = carry
        key_sample, key_noise = keys
        batch = replay.sample(memory, key_sample, hparams.gamma, beta)
        (value, errors), grads = jax.value_and_grad(batch_loss, has_aux=True)(
            params, target, batch, key_noise
        )
        params, opt_state = descend(optimizer, grads, opt_state, params, learning_rate)
        memory = replay.update(memory, batch.index, errors, hparams.alpha)
        count = count + 1
        rate = jnp.where(count % hparams.target_period < 1.0, hparams.target_rate, 0.0)
        target = jax.tree.map(lambda t, p: (1.0 - rate) * t + rate * p, target, params)
        metrics = {
            "loss": value,
            "td_error": jnp.mean(jnp.abs(errors)),
            "grad_norm": optax.tree.norm(grads),
        }
        return (params, opt_state, target, memory, count), metrics

    def step(state: State, batch: Any = None) -> tuple[State, Metrics]:
        # All keys come from one split: on a CPU every one is a loop of its own.
        keys = jax.random.split(state.key, 2 + 2 * updates)
        key, key_act, keys_learn = keys[0], keys[1], keys[2:].reshape(updates, 2)
        hparams, played = state.hparams, state.step * (steps * lanes)
        epsilon = _towards(hparams.epsilon_start, hparams.epsilon_end, played / hparams.epsilon_steps)
        beta = _towards(hparams.beta_start, 1.0, played / hparams.beta_steps)
        learning_rate = hparams.learning_rate * linear_decay(state.step, total_steps)
        experience, metrics = collect(state.params, state.env_state, key_act, epsilon, prefill + state.step)
        before = (state.params, state.opt_state, state.frozen)
        (*after, memory, count), learnt = jax.lax.scan(
            lambda carry, keys: update(carry, keys, hparams, learning_rate, beta),
            (*before, experience.replay, experience.updates),
            keys_learn,
        )
        healthy = experience.first_bad[1] < 0
        params, opt_state, target = _keep_if(healthy, tuple(after), before)
        learnt = jax.tree.map(jnp.mean, learnt)
        learnt["loss"] = jnp.where(healthy, learnt["loss"], jnp.nan)
        experience = experience._replace(replay=memory, updates=count)
        state = State(params, opt_state, state.step + 1, hparams, target, experience, key)
        return state, metrics | learnt | {"epsilon": epsilon, "beta": beta}

    return Learner(init, step)


def make_online_q(
    actor: ValueActor,
    *,
    loss: TransitionLoss | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Learner:
    """Build the lecture's Algorithm 4: learn from each transition as it comes, once, without a memory.

        theta <- theta - alpha grad (y - Q(s, a; theta))^2 / 2,   y = r + gamma max_a Q(s', a; theta), stopped

    The same parameters act, judge and are judged. With one environment and one step a rollout this is the
    algorithm as printed (but for the sign it lost); a longer rollout is learnt in the order it was played.

    Args:
      actor: the domain.
      loss: default `td_loss(squared)`.
      optimizer: an update rule without its learning rate; default plain gradient descent.

    Returns:
      A `Learner`; its hparams are `DQNHParams`, of which the target's and the replay's fields are not read.
    """
    optimizer = optimizer or optax.identity()
    one = transition_loss(actor, loss or td_loss(squared))
    steps, lanes = _rollout_shapes(actor).reward.shape

    def init(key: chex.PRNGKey, hparams: Any, params: Params | None = None, frozen: Any = None) -> State:
        key_params, key_env, key = jax.random.split(key, 3)
        params = actor.init_params(key_params) if params is None else params
        hparams = jax.tree.map(jnp.float32, hparams)
        zero = jnp.zeros((), jnp.int32)
        experience = Experience(actor.init_env(key_env), None, zero, jnp.full(2, -1, jnp.int32))
        return State(params, optimizer.init(params), zero, hparams, frozen, experience, key)

    def update(carry: Any, data: tuple[Sample, chex.PRNGKey], rate: chex.Array) -> tuple[Any, Metrics]:
        params, opt_state = carry
        (value, error), grads = jax.value_and_grad(one, has_aux=True)(params, params, *data)
        metrics = {"loss": value, "td_error": jnp.abs(error), "grad_norm": optax.tree.norm(grads)}
        return descend(optimizer, grads, opt_state, params, rate), metrics

    def step(state: State, batch: Any = None) -> tuple[State, Metrics]:
        key, key_act, key_learn = jax.random.split(state.key, 3)
        hparams, experience = state.hparams, state.env_state
        played = state.step * (steps * lanes)
        epsilon = _towards(hparams.epsilon_start, hparams.epsilon_end, played / hparams.epsilon_steps)
        envs, transition, metrics = actor.rollout(state.params, experience.envs, key_act, epsilon)
        first_bad = _first_bad(experience.first_bad, transition.reward, state.step * steps)
        stream = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]), _one_step_samples(transition, hparams.gamma)
        )
        before = (state.params, state.opt_state)
        after, learnt = jax.lax.scan(
            lambda carry, data: update(carry, data, hparams.learning_rate),
            before,
            (stream, jax.random.split(key_learn, steps * lanes)),
        )
        healthy = first_bad[1] < 0
        params, opt_state = _keep_if(healthy, after, before)
        learnt = jax.tree.map(jnp.mean, learnt)
        learnt["loss"] = jnp.where(healthy, learnt["loss"], jnp.nan)
        experience = Experience(envs, None, experience.updates + steps * lanes, first_bad)
        state = State(params, opt_state, state.step + 1, hparams, state.frozen, experience, key)
        return state, metrics | learnt | {"epsilon": epsilon}

    return Learner(init, step)


def _one_step_samples(transition: Transition, gamma: chex.Numeric) -> Sample:
    return Sample(
        obs=transition.obs,
        action=transition.action,
        reward=transition.reward,
        discount=gamma * (1.0 - transition.terminated),
        next_obs=transition.next_obs,
        index=jnp.zeros_like(transition.action),
        weight=jnp.ones_like(transition.reward),
    )
