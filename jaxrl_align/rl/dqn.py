"""Deep Q-learning: the lecture's online algorithm, and DQN with its options up to Rainbow, over any actor.

The learner imports no environment: an actor of action values acts epsilon-greedily. Double Q-learning, n-step
returns, prioritised replay and a distributional loss are arguments here; duelling, noisy and distributional
heads are the net's. Rainbow (Hessel et al. 2018) is all of them at once.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_align.checks import check_counts, check_support, refuse
from jaxrl_align.learner import begin, check_optimizer, descend, linear_decay, make_optimizer
from jaxrl_align.losses import categorical_q_loss, huber, quantile_regression_loss, squared, td_error
from jaxrl_align.placement import place_rows
from jaxrl_align.rl.replay import Replay, Sample, make_replay, replay_bytes, time_first
from jaxrl_align.types import Actor, Learner, Metrics, Numeric, Params, State, Transition

TransitionLoss = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""`(out_tm1, r_t, discount_t, out_t) -> (loss, error)` of one transition: the net's output for the action
taken, [] or [K], and for the next action, whose gradient it stops; `error` sets the priority."""


def td_loss(criterion: Callable[[jax.Array], jax.Array] = huber) -> TransitionLoss:
    """Return the loss of plain action values: `criterion(r + discount q_t - q_tm1)`.

    Args:
      criterion: `losses.huber` (Mnih et al. 2015) or `losses.squared` (docs/lectures.md, A8, halved).
    """

    def loss(
        out_tm1: jax.Array, r_t: jax.Array, discount_t: jax.Array, out_t: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        error = td_error(out_tm1, r_t, discount_t, out_t)
        return criterion(error), error

    return loss


def c51_loss(support: jax.Array) -> TransitionLoss:
    """Return C51's loss, the cross-entropy to the projected target; it is also the priority (Rainbow).

    Args:
      support: [K], the net's own.

    Raises:
      ValueError: if it does not rise in even steps.
    """
    check_support(support)

    def loss(
        out_tm1: jax.Array, r_t: jax.Array, discount_t: jax.Array, out_t: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        first = jnp.zeros((), jnp.int32)
        value = categorical_q_loss(out_tm1[None], first, r_t, discount_t, out_t[None], support)
        return value, value

    return loss


def quantile_loss(
    out_tm1: jax.Array, r_t: jax.Array, discount_t: jax.Array, out_t: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute QR-DQN's loss between the net's quantiles, [K] each; it is also the priority."""
    levels = (jnp.arange(out_tm1.shape[0]) + 0.5) / out_tm1.shape[0]
    value = quantile_regression_loss(out_tm1, levels, r_t + discount_t * out_t)
    return value, value


def transition_loss(
    actor: Actor, loss: TransitionLoss, *, double: bool = False
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return `(params, target_params, frozen, transition, key) -> (loss, error)` for one transition.

    The target network judges the next action; it also selects it, unless `double`, when the online network
    selects (van Hasselt et al. 2016). Each of the forward passes draws its own noise.
    """

    def one(
        params: Params, target: Params, frozen: Any, transition: Sample, key: chex.PRNGKey
    ) -> tuple[jax.Array, jax.Array]:
        key_now, key_next, key_select = jax.random.split(key, 3)
        out_tm1 = actor.action_values(params, frozen, transition.obs, key_now)
        out_t = actor.action_values(target, frozen, transition.next_obs, key_next)
        selector = actor.action_values(params, frozen, transition.next_obs, key_select) if double else out_t
        action_t = jnp.argmax(actor.expected_values(selector))
        return loss(out_tm1[transition.action], transition.reward, transition.discount, out_t[action_t])

    return one


class DQNHParams(NamedTuple):
    """The traced scalars of DQN; give any field a leading axis and vmap to sweep it."""

    learning_rate: Numeric = 2.5e-4
    gamma: Numeric = 0.99
    epsilon_start: Numeric = 1.0
    epsilon_end: Numeric = 0.05
    epsilon_steps: Numeric = 10_000.0
    """Environment steps, all environments together, over which epsilon falls linearly; 0: it is at its end at
    once."""
    target_rate: Numeric = 1.0
    """Step of the target net towards the online net: 1 copies it, less is Polyak averaging."""
    target_period: Numeric = 500.0
    """Gradient steps between two moves of the target net; a fraction counts as the next whole number."""
    alpha: Numeric = 0.6
    """Prioritised replay: 0 draws uniformly, 1 in proportion to |error|."""
    beta_start: Numeric = 0.4
    """Prioritised replay: exponent of the importance weights; it rises linearly to 1."""
    beta_steps: Numeric = 100_000.0
    """Environment steps over which beta rises; 0: it is 1 at once."""


class Exploration(NamedTuple):
    """The hparams that a learner of action values passes to its actor's rollout."""

    epsilon: Numeric
    """In [0, 1]: the probability of a random action."""


class Experience(NamedTuple):
    """DQN's state besides the network that it trains."""

    envs: Any
    target: Params | None
    """The target network's parameters."""
    replay: Any
    """A `ReplayState`; None for the online algorithm."""
    since_target: jax.Array
    """[] int32 gradient steps since the target network last moved."""
    first_bad: jax.Array
    """[3] int32 (environment, rollout, its step) of the first reward that was not finite; -1 while there is
    none."""


class DQN(NamedTuple):
    """The parts of one DQN learner; `make_dqn` says what each is."""

    actor: Actor
    replay: Replay
    loss: Callable[..., tuple[jax.Array, jax.Array]]
    """Of `transition_loss`."""
    optimizer: optax.GradientTransformation
    updates: int
    total_steps: int | None
    num_envs: int
    num_steps: int
    """Of each environment, per rollout."""
    prefill: int
    """Rollouts of random play before the first update."""


def memory_bytes(actor: Actor, capacity: int, *, prioritised: bool = False) -> int:
    """Return the bytes that the replay of `make_dqn` will take for each member, before any is allocated."""
    return replay_bytes(_example(_rollout_shapes(actor)), capacity, prioritised=prioritised)


def check_rewards(state: State) -> None:
    """Say which environment and step paid a reward that was not finite; call it after each chunk.

    From that step on the member has learnt nothing, and its `loss` is NaN.

    Args:
      state: of `make_dqn` or `make_online_q`, with or without a leading axis of members.

    Raises:
      FloatingPointError: naming the first such environment and step of every member that met one.
    """
    bad = jax.device_get(state.env_state.first_bad).reshape(-1, 3)
    found = [
        (f"member {i}: " if len(bad) > 1 else "") + f"environment {env}, rollout {rollout}, step {step} of it"
        for i, (env, rollout, step) in enumerate(bad)
        if env >= 0
    ]
    if found:
        raise FloatingPointError(
            f"a reward is nan or infinite at {'; '.join(found)}; nothing was learnt from it or after it; "
            f"mend the environment's reward"
        )


def _start_experience(envs: Any, target: Params | None = None, replay: Any = None) -> Experience:
    return Experience(envs, target, replay, jnp.zeros((), jnp.int32), jnp.full(3, -1, jnp.int32))


def _rollout_shapes(actor: Actor) -> Transition:
    """Return the shapes [B, T, ...] of a rollout, without running it."""
    if actor.action_values is None:
        raise ValueError(
            "learning action values needs an actor that has them; got one of a policy: take "
            "actors.value.make_value_actor, or rl.make_actor_critic"
        )

    def one_rollout(key: chex.PRNGKey) -> Transition:
        key_params, key_env, key_act = jax.random.split(key, 3)
        params, envs = actor.init_params(key_params), actor.init_env(key_env, DQNHParams())
        return actor.rollout(params, None, envs, key_act, Exploration(1.0), None)[1]

    return jax.eval_shape(one_rollout, jax.random.key(0))


def _example(shapes: Transition) -> Transition:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), shapes)


def _first_bad(known: jax.Array, reward: jax.Array, rollouts: jax.Array) -> jax.Array:
    bad = ~jnp.isfinite(reward.T)  # the earliest step first
    step, env = jnp.divmod(jnp.argmax(bad.ravel()), bad.shape[1])
    found = jnp.stack([env, rollouts, step]).astype(jnp.int32)
    return jnp.where((known[0] < 0) & jnp.any(bad), found, known)


def _steps_played(learner_steps: jax.Array, rollout: int) -> jax.Array:
    """Return the environment steps so far, [] float32: an int32 would wrap after 2^31 of them."""
    return learner_steps.astype(jnp.float32) * rollout


def _towards(start: Numeric, end: Numeric, played: jax.Array, steps: Numeric) -> jax.Array:
    """Return the value after `played` of `steps` on the line from start to end; of 0 steps, the end."""
    fraction = jnp.where(steps > 0, played / steps, 1.0)
    return jnp.asarray(start + (end - start) * jnp.clip(fraction, 0.0, 1.0))


def _check_sizes(capacity: int, rollout: int, warmup_steps: int) -> None:
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be at least 0; got warmup_steps={warmup_steps}")
    if capacity % rollout:
        raise ValueError(
            f"capacity must be a multiple of the transitions of a rollout (num_envs * num_steps); got "
            f"capacity={capacity}, {rollout} a rollout; try capacity={-(-capacity // rollout) * rollout}"
        )


def _keep_if(healthy: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(healthy, a, b), new, old)


def make_dqn(
    actor: Actor,
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
    random play.

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
    check_counts(updates=updates, capacity=capacity, batch_size=batch_size)
    optimizer = (
        make_optimizer(max_grad_norm=10.0, eps=1e-8) if optimizer is None else check_optimizer(optimizer)
    )
    shapes = _rollout_shapes(actor)
    num_envs, num_steps = shapes.reward.shape
    replay = make_replay(capacity, batch_size, lanes=num_envs, n_step=n_step, prioritised=prioritised)
    _check_sizes(capacity, num_envs * num_steps, warmup_steps)
    settings = DQN(
        actor,
        replay,
        transition_loss(actor, loss or td_loss(squared), double=double),
        optimizer,
        updates,
        total_steps,
        num_envs,
        num_steps,
        prefill=-(-max(warmup_steps, n_step * num_envs) // (num_envs * num_steps)),
    )
    return Learner(functools.partial(init_dqn, settings), functools.partial(step_dqn, settings))


def init_dqn(
    settings: DQN, key: chex.PRNGKey, hparams: Any, params: Params | None = None, frozen: Any = None
) -> State:
    """Fill the replay by random play and return the first state."""
    actor, init_opt = settings.actor, settings.optimizer.init
    key_params, key_env, key_fill, key_state = jax.random.split(key, 4)
    keys = (key_params, key_env, key_state)
    state = begin(actor.init_params, init_opt, actor.init_env, key, hparams, params, keys=keys)
    replay = settings.replay.init(_example(_rollout_shapes(actor)))
    target = jax.tree.map(jnp.copy, state.params)
    experience = _start_experience(state.env_state, target, replay)

    def play(carry: tuple[Experience, chex.PRNGKey], i: jax.Array) -> tuple[Any, None]:
        experience, key = carry
        key, key_act = jax.random.split(key)
        experience, _ = collect_transitions(settings, state.params, frozen, experience, key_act, 1.0, i)
        return (experience, key), None

    (experience, _), _ = jax.lax.scan(play, (experience, key_fill), jnp.arange(settings.prefill))
    return state._replace(env_state=experience)


def step_dqn(settings: DQN, state: State, batch: Any = None, frozen: Any = None) -> tuple[State, Metrics]:
    """Act for one rollout, store it, then take the gradient steps; pure."""
    refuse(batch=batch)
    # All keys come from one split: on a CPU every one is a loop of its own.
    keys = jax.random.split(state.key, 2 + 2 * settings.updates)
    key, key_act, keys_learn = keys[0], keys[1], keys[2:].reshape(settings.updates, 2, *keys.shape[1:])
    hparams, played = state.hparams, _steps_played(state.step, settings.num_steps * settings.num_envs)
    epsilon = _towards(hparams.epsilon_start, hparams.epsilon_end, played, hparams.epsilon_steps)
    beta = _towards(hparams.beta_start, 1.0, played, hparams.beta_steps)
    learning_rate = hparams.learning_rate * linear_decay(state.step, settings.total_steps)
    experience, metrics = collect_transitions(
        settings, state.params, frozen, state.env_state, key_act, epsilon, settings.prefill + state.step
    )
    before = (state.params, state.opt_state, experience.target)
    (*after, memory, count), learnt = jax.lax.scan(
        lambda carry, keys: update_q(settings, carry, keys, hparams, frozen, learning_rate, beta),
        (*before, experience.replay, experience.since_target),
        keys_learn,
    )
    healthy = experience.first_bad[0] < 0
    params, opt_state, target = _keep_if(healthy, tuple(after), before)
    learnt = jax.tree.map(jnp.mean, learnt)
    learnt["loss"] = jnp.where(healthy, learnt["loss"], jnp.nan)
    experience = experience._replace(target=target, replay=memory, since_target=count)
    state = State(params, opt_state, optax.safe_increment(state.step), hparams, experience, key)
    return state, metrics | learnt | {"epsilon": epsilon, "beta": beta}


def collect_transitions(
    settings: DQN,
    params: Params,
    frozen: Any,
    experience: Experience,
    key: chex.PRNGKey,
    epsilon: Numeric,
    rollouts: jax.Array,
) -> tuple[Experience, Metrics]:
    """Act for one rollout and store it; `rollouts` [] says how many came before it."""
    envs, transition, metrics = settings.actor.rollout(
        params, frozen, experience.envs, key, Exploration(epsilon), None
    )
    first_bad = _first_bad(experience.first_bad, transition.reward, rollouts)
    memory = settings.replay.add(experience.replay, transition)
    return experience._replace(envs=envs, replay=memory, first_bad=first_bad), metrics


def update_q(
    settings: DQN,
    carry: Any,
    keys: chex.PRNGKey,
    hparams: Any,
    frozen: Any,
    learning_rate: jax.Array,
    beta: jax.Array,
) -> tuple[Any, Metrics]:
    """Take one gradient step on a drawn minibatch, set its priorities, and move the target network.

    Args:
      settings: of the learner.
      carry: `(params, opt_state, target, replay, gradient steps since the target moved)`.
      keys: [2], for the draw and for a noisy net.
      hparams: as `DQNHParams`.
      frozen: what the actor reads besides its parameters.
      learning_rate: [].
      beta: [] exponent of the importance weights.

    Returns:
      The new carry, and `loss`, `td_error` and `grad_norm`.
    """
    params, opt_state, target, memory, count = carry
    key_sample, key_noise = keys
    batch = place_rows(settings.replay.sample(memory, key_sample, hparams.gamma, beta))

    def batch_loss(params: Params) -> tuple[jax.Array, jax.Array]:
        # One draw of a noisy net's weights serves the batch, as in Fortunato et al. 2018.
        over_batch = jax.vmap(settings.loss, (None, None, None, 0, None))
        losses, errors = over_batch(params, target, frozen, batch, key_noise)
        return jnp.mean(batch.weight * losses), errors

    (value, errors), grads = jax.value_and_grad(batch_loss, has_aux=True)(params)
    params, opt_state = descend(settings.optimizer, grads, opt_state, params, learning_rate)
    memory = settings.replay.update(memory, batch.index, errors, hparams.alpha)
    moves = count + 1 >= hparams.target_period
    rate = jnp.where(moves, hparams.target_rate, 0.0)
    target = jax.tree.map(lambda t, p: ((1.0 - rate) * t + rate * p).astype(t.dtype), target, params)
    metrics = {"loss": value, "td_error": jnp.mean(jnp.abs(errors)), "grad_norm": optax.tree.norm(grads)}
    return (params, opt_state, target, memory, jnp.where(moves, 0, count + 1)), metrics


class OnlineQ(NamedTuple):
    """The parts of one online learner; `make_online_q` says what each is."""

    actor: Actor
    loss: Callable[..., tuple[jax.Array, jax.Array]]
    optimizer: optax.GradientTransformation
    num_envs: int
    num_steps: int


def make_online_q(
    actor: Actor,
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
    one = transition_loss(actor, loss or td_loss(squared))
    optimizer = optax.identity() if optimizer is None else check_optimizer(optimizer)
    settings = OnlineQ(actor, one, optimizer, *_rollout_shapes(actor).reward.shape)
    init_env = lambda key, hparams: _start_experience(actor.init_env(key, hparams))
    init = functools.partial(begin, actor.init_params, optimizer.init, init_env)
    return Learner(init, functools.partial(step_online_q, settings))


def step_online_q(
    settings: OnlineQ, state: State, batch: Any = None, frozen: Any = None
) -> tuple[State, Metrics]:
    """Act for one rollout and learn from each transition once, in the order of time; pure."""
    refuse(batch=batch)
    key, key_act, key_learn = jax.random.split(state.key, 3)
    hparams, experience = state.hparams, state.env_state
    played = _steps_played(state.step, settings.num_steps * settings.num_envs)
    epsilon = _towards(hparams.epsilon_start, hparams.epsilon_end, played, hparams.epsilon_steps)
    envs, transition, metrics = settings.actor.rollout(
        state.params, frozen, experience.envs, key_act, Exploration(epsilon), None
    )
    first_bad = _first_bad(experience.first_bad, transition.reward, state.step)
    stream = time_first(_one_step_samples(transition, hparams.gamma))

    def learn(carry: tuple[Params, Any], data: tuple[Sample, chex.PRNGKey]) -> tuple[Any, Metrics]:
        params, opt_state = carry
        sample, key = data
        (value, error), grads = jax.value_and_grad(settings.loss, has_aux=True)(
            params, params, frozen, sample, key
        )
        metrics = {"loss": value, "td_error": jnp.abs(error), "grad_norm": optax.tree.norm(grads)}
        return descend(settings.optimizer, grads, opt_state, params, hparams.learning_rate), metrics

    before = (state.params, state.opt_state)
    count = settings.num_steps * settings.num_envs
    after, learnt = jax.lax.scan(learn, before, (stream, jax.random.split(key_learn, count)))
    params, opt_state = _keep_if(first_bad[0] < 0, after, before)
    learnt = jax.tree.map(jnp.mean, learnt)
    learnt["loss"] = jnp.where(first_bad[0] < 0, learnt["loss"], jnp.nan)
    experience = experience._replace(envs=envs, first_bad=first_bad)
    state = State(params, opt_state, optax.safe_increment(state.step), hparams, experience, key)
    return state, metrics | learnt | {"epsilon": epsilon}


def _one_step_samples(transition: Transition, gamma: Numeric) -> Sample:
    return Sample(
        obs=transition.obs,
        action=transition.action,
        reward=transition.reward,
        discount=jnp.asarray(gamma) * (1.0 - transition.terminated),
        next_obs=transition.next_obs,
        index=jnp.zeros_like(transition.action),
        weight=jnp.ones_like(transition.reward),
    )
