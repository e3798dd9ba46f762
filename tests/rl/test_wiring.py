"""One step of each composed learner against the same step written out: what is wired to what, and its sign.

No coefficient is 0 or 1, weights are unequal, windows span two steps, and episodes end in both ways.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align import actors, envs, nets, rl
from jaxrl_align.learner import train
from jaxrl_align.rl.dqn import collect_transitions, update_q
from jaxrl_align.rl.expert_iteration import plan_from
from tests.tiny import bits

S, A, GAMMA, LAMBDA = 4, 3, 0.8, 0.7
RNG = np.random.default_rng(0)
MDP = envs.make_mdp(
    RNG.dirichlet(np.ones(S), (S, A)), RNG.normal(size=(S, A)), GAMMA, terminal=np.arange(S) == S - 1
)
ENV = envs.make_tabular_environment(MDP, max_steps=3)
SGD = optax.identity()


def table_net(value_shape=(S,)):
    """A policy and a critic that are tables, with entries that matter."""

    def init(key, obs):
        key_policy, key_value = jax.random.split(key)
        return {"pi": jax.random.normal(key_policy, (S, A)), "v": jax.random.normal(key_value, value_shape)}

    return nets.Net(init, lambda params, s: (params["pi"][s], params["v"][s]))


def close(got, want, **tolerances):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **({"atol": 1e-5} | tolerances)), got, want)


# Deep Q-learning


@functools.cache
def q_learner():
    actor = actors.make_value_actor(ENV, nets.make_table(S, A), num_envs=4, num_steps=2)
    learner = rl.make_dqn(
        actor,
        capacity=48,
        batch_size=16,
        n_step=2,
        double=True,
        prioritised=True,
        warmup_steps=40,
        optimizer=SGD,
    )
    hparams = rl.DQNHParams(
        learning_rate=0.3,
        gamma=GAMMA,
        epsilon_start=0.9,
        epsilon_end=0.1,
        epsilon_steps=64.0,
        target_rate=0.25,
        target_period=1.0,
        alpha=0.7,
        beta_start=0.6,
        beta_steps=80.0,
    )
    state = jax.jit(learner.init)(jax.random.key(0), hparams)
    tables = RNG.normal(size=(2, S, A)).astype(np.float32)
    memory = state.env_state.replay
    ready = np.flatnonzero(np.asarray(memory.sums[0]).ravel() > 0)
    settings = learner.step.args[0]
    errors = jnp.asarray(RNG.uniform(0.01, 3.0, len(ready)), jnp.float32)
    memory = settings.replay.update(memory, jnp.asarray(ready, jnp.int32), errors, 0.7)
    experience = state.env_state._replace(target=jnp.asarray(tables[1]), replay=memory)
    state = state._replace(params=jnp.asarray(tables[0]), env_state=experience, step=jnp.int32(5))
    return learner, settings, state, len(ready)


def test_one_gradient_step_of_dqn_by_hand():
    _, settings, state, starts = q_learner()
    memory, target, q = state.env_state.replay, state.env_state.target, state.params
    keys = jax.random.split(jax.random.key(1))
    carry = (q, state.opt_state, target, memory, jnp.int32(0))
    (new, _, moved, after, _), metrics = jax.jit(functools.partial(update_q, settings))(
        carry, keys, state.hparams, None, 0.3, 0.6
    )

    index = np.asarray(settings.replay.sample(memory, keys[0], GAMMA, 0.6).index)
    leaves = np.asarray(memory.sums[0]).ravel()
    weight = (starts * leaves[index] / leaves.sum()) ** -0.6
    weight /= weight.max()
    assert np.ptp(weight) > 0.3 and len(set(index)) > 8
    data, q, target = jax.tree.map(np.asarray, (memory.data, q, target))
    errors, gradient, ends = [], np.zeros((S, A)), set()
    for i, w in zip(index, weight, strict=True):
        reward, discount, at = 0.0, 1.0, i
        for at in (i, (i + 4) % 48):  # the same environment's next row
            reward += discount * data.reward[at]
            discount *= GAMMA
            if data.terminated[at] or data.truncated[at]:
                break
        ends.add((bool(data.terminated[at]), bool(data.truncated[at]), at == i))
        after_it = data.next_obs[at]
        chosen = np.argmax(q[after_it])  # by the online table, judged by the target's
        y = reward + discount * (not data.terminated[at]) * target[after_it, chosen]
        errors.append(y - q[data.obs[i], data.action[i]])
        gradient[data.obs[i], data.action[i]] -= w * errors[-1] / 16
    assert (False, True, True) in ends and (True, False, True) in ends and (False, False, False) in ends
    assert (np.argmax(q, 1) != np.argmax(target, 1)).any()
    close(new, q - 0.3 * gradient)
    close(moved, 0.75 * target + 0.25 * np.asarray(new))
    close(np.asarray(after.sums[0]).ravel()[index], (np.abs(errors) + 1e-6) ** 0.7, rtol=1e-4)
    close(metrics["loss"], np.mean(weight * np.square(errors) / 2))
    close(metrics["td_error"], np.mean(np.abs(errors)))


def test_a_whole_step_of_dqn_acts_stores_and_learns_by_its_schedules():
    learner, settings, state, _ = q_learner()
    got, metrics = jax.jit(learner.step)(state)
    played = 5 * 8
    epsilon, beta = 0.9 - 0.8 * played / 64, 0.6 + 0.4 * played / 80
    close((metrics["epsilon"], metrics["beta"]), (epsilon, beta))
    keys = jax.random.split(state.key, 4)
    experience, _ = jax.jit(functools.partial(collect_transitions, settings))(
        state.params, None, state.env_state, keys[1], epsilon, settings.prefill + 5
    )
    carry = (state.params, state.opt_state, experience.target, experience.replay, experience.since_target)
    (params, _, target, memory, _), _ = jax.jit(functools.partial(update_q, settings))(
        carry, keys[2:], state.hparams, None, 0.3, beta
    )
    close(got.params, params)
    close(got.env_state.target, target)
    close(got.env_state.replay.sums[0], memory.sums[0])
    assert bits(got.env_state.replay.data) == bits(experience.replay.data) and got.step == 6
    assert bits(experience.replay.data) != bits(state.env_state.replay.data)


# Policy gradients: the losses anew, one number at a time


def log_softmax(x):
    return x - jax.nn.logsumexp(x)


def kl_of(p, q):
    """KL(p || q) of two rows of logits."""
    return jnp.sum(jnp.exp(log_softmax(p)) * (log_softmax(p) - log_softmax(q)))


def entropy_of(row):
    return -jnp.sum(jnp.exp(log_softmax(row)) * log_softmax(row))


def advantages_of(trajectory):
    """Generalised advantages [B, T] by the recursion, in numpy."""
    r, discount, trace, v, after = (
        np.asarray(x, np.float64)
        for x in (
            trajectory.reward,
            trajectory.discount,
            trajectory.lambda_,
            trajectory.value,
            trajectory.next_value,
        )
    )
    out, last = np.zeros_like(r), np.zeros(len(r))
    for t in reversed(range(r.shape[1])):
        last = r[:, t] + discount[:, t] * after[:, t] - v[:, t] + discount[:, t] * trace[:, t] * last
        out[:, t] = last
    return out


def weights_a2c(trajectory):
    advantage = advantages_of(trajectory)
    return advantage, advantage + np.asarray(trajectory.value)


def weights_ppo(trajectory):
    advantage, target = weights_a2c(trajectory)
    return (advantage - advantage.mean()) / np.sqrt(advantage.var() + 1e-8), target


def weights_q(trajectory):
    return trajectory.value, trajectory.reward + trajectory.discount * trajectory.next_value


def weights_reinforce(trajectory):
    """Discounted returns of whole episodes minus the critic's values, 0 after the end."""
    mask = np.asarray(trajectory.mask)
    ret, last = np.zeros_like(mask), np.zeros(len(mask))
    for t in reversed(range(mask.shape[1])):
        last = np.asarray(trajectory.reward[:, t]) + np.asarray(trajectory.discount[:, t]) * last
        ret[:, t] = last
    return (ret - np.asarray(trajectory.value)) * mask, ret * mask


CLIP, VALUE_CLIP, VALUE_COEF, ENTROPY_COEF, KL_COEF = 0.15, 0.03, 0.4, 0.25, 1.7
PLAIN = rl.PolicyGradientHParams(3.0, GAMMA, LAMBDA, VALUE_COEF, ENTROPY_COEF)


def plain_term(s, a, weight, target, old, value, log_prob, row):
    return -log_prob * weight + VALUE_COEF * (target - value) ** 2 / 2 - ENTROPY_COEF * entropy_of(row)


def ppo_term(s, a, weight, target, old, value, log_prob, row):
    before = log_softmax(old["pi"][s])[a]
    ratio = jnp.exp(log_prob - before)
    policy = -jnp.minimum(ratio * weight, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * weight)
    near = old["v"][s] + jnp.clip(value - old["v"][s], -VALUE_CLIP, VALUE_CLIP)
    judged = jnp.maximum((value - target) ** 2, (near - target) ** 2) / 2
    return policy + VALUE_COEF * judged - ENTROPY_COEF * entropy_of(row)


def kl_term(s, a, weight, target, old, value, log_prob, row):
    ratio = jnp.exp(log_prob - log_softmax(old["pi"][s])[a])
    policy = -ratio * weight + KL_COEF * kl_of(old["pi"][s], row)
    return policy + VALUE_COEF * (target - value) ** 2 / 2 - ENTROPY_COEF * entropy_of(row)


LEARNERS = {
    "a2c": (lambda a: rl.make_a2c(a, optimizer=SGD, measure_kl=True), PLAIN, weights_a2c, plain_term, 1),
    "reinforce": (
        lambda a: rl.make_reinforce(a, baseline="learned", optimizer=SGD, measure_kl=True),
        PLAIN,
        weights_reinforce,
        plain_term,
        1,
    ),
    "q": (
        lambda a: rl.make_q_actor_critic(a, optimizer=SGD, measure_kl=True),
        PLAIN,
        weights_q,
        plain_term,
        1,
    ),
    "ppo": (
        lambda a: rl.make_actor_critic(
            a, epochs=3, minibatches=1, segment_length=1, optimizer=SGD, measure_kl=True
        ),
        rl.PPOHParams(2.0, GAMMA, LAMBDA, CLIP, VALUE_CLIP, VALUE_COEF, ENTROPY_COEF),
        weights_ppo,
        ppo_term,
        3,
    ),
    "ppo with a KL penalty": (
        lambda a: rl.make_ppo_kl(a, adaptive=False, epochs=3, minibatches=1, segment_length=1, optimizer=SGD),
        rl.PPOKLHParams(1.0, GAMMA, LAMBDA, KL_COEF, 0.01, VALUE_COEF, ENTROPY_COEF),
        weights_ppo,
        kl_term,
        3,
    ),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_one_update_of_a_policy_by_hand(name):
    make, hparams, weigh, term, epochs = LEARNERS[name]
    kind = "sarsa" if name == "q" else "state"
    net = table_net((S, A) if name == "q" else (S,))
    size = {"num_envs": 6, "num_steps": 5, "critic": kind, "whole_episodes": name == "reinforce"}
    actor = actors.make_actor(ENV, net, **size)
    learner = make(actor)
    state = learner.init(jax.random.key(0), hparams)
    got, metrics = jax.jit(learner.step)(state)

    key_rollout = jax.random.split(state.key, 3)[1]
    _, trajectory, _ = jax.jit(actor.rollout)(
        state.params, None, state.env_state, key_rollout, state.hparams, None
    )
    weight, target = (np.asarray(x) for x in weigh(trajectory))
    obs, action, mask = (np.asarray(x) for x in (trajectory.obs, trajectory.action, trajectory.mask))
    assert (np.asarray(trajectory.discount) == 0).any() and (np.asarray(trajectory.lambda_) == 0).any()
    real = mask.ravel() > 0
    assert real.all() != (name == "reinforce")

    def loss(params):
        def one(s, a, weight, target):
            row, value = params["pi"][s], params["v"][s] if kind == "state" else params["v"][s, a]
            return term(s, a, weight, target, state.params, value, log_softmax(row)[a], row)

        return jnp.sum(jax.vmap(one)(*(x.ravel() for x in (obs, action, weight, target))) * real) / real.size

    params, gradient = state.params, jax.jit(jax.grad(loss))
    for _ in range(epochs):
        params = jax.tree.map(lambda p, g: p - hparams.learning_rate * g, params, gradient(params))
    close(got.params, params, atol=2e-5)
    before, after = (p["pi"][obs.ravel()[real]] for p in (state.params, got.params))
    kl, back = jnp.mean(jax.vmap(kl_of)(before, after)), jnp.mean(jax.vmap(kl_of)(after, before))
    assert kl > 1e-3 and abs(kl - back) > 1e-3 * kl
    close(metrics["policy/kl"], kl, rtol=2e-4, atol=0)


def test_an_update_stops_at_its_target_kl():
    """The steps before the first minibatch beyond 1.5 times the target are the plain ones, and the last."""
    actor = actors.make_actor(ENV, table_net(), num_envs=6, num_steps=5)
    hparams = rl.PPOHParams(2.0, GAMMA, LAMBDA, 10.0, jnp.inf, VALUE_COEF, 0.0)

    def step(epochs, target_kl=None):
        how = {"epochs": epochs, "minibatches": 1, "segment_length": 1, "optimizer": SGD}
        learner = rl.make_actor_critic(actor, target_kl=target_kl, **how)
        return learner.step(learner.init(jax.random.key(0), hparams))

    (once, _), (twice, two), (thrice, plain) = jax.jit(lambda: (step(1), step(2), step(3)))()
    stopping = jax.jit(lambda target: step(3, target))
    second = 2 * float(two["policy/approxkl_avg"])  # the first minibatch is judged before any step: 0
    for target, taken, want in [(second / 1.51, 1, once), (second / 1.49, 2, twice), (jnp.inf, 3, thrice)]:
        state, metrics = stopping(target)
        assert metrics["gradient_steps"] == taken
        close(state.params, want.params, atol=1e-6)
        judged = plain if taken > 1 else two  # the minibatch that stopped counts, those after it do not
        close(metrics["policy/approxkl_avg"], judged["policy/approxkl_avg"], rtol=1e-4)
    assert "gradient_steps" not in plain


# Search


def search_learner(model, **settings):
    actor = actors.make_actor(ENV, table_net(), num_envs=4, num_steps=2)
    how = {"simulations": 4, "epochs": 1, "minibatches": 1, "optimizer": SGD} | settings
    return rl.make_search_learner(actor, table_net().apply, model, **how)


def test_an_end_in_the_model_ends_the_plan():
    """Action 0 pays 1 and ends, action 1 goes on to where the network expects 10: the second is better."""
    model = lambda s, a: (jnp.where(a == 0, 1.0, 0.0), jnp.where(a == 0, 0.0, 1.0), jnp.int32(1))
    settings = search_learner(model, simulations=8).step.args[0]
    params = {"pi": jnp.zeros((S, A)).at[:, 2].set(-jnp.inf), "v": jnp.full(S, 10.0)}
    plan = plan_from(settings, params, jnp.float32(0.9), jnp.int32(0), jax.random.key(0))
    assert plan[1] > plan[0] + 1.0
    forever = settings._replace(model=lambda s, a: (model(s, a)[0], 1.0, jnp.int32(1)))
    plan = plan_from(forever, params, jnp.float32(0.9), jnp.int32(0), jax.random.key(0))
    assert plan[0] > plan[1]


def test_one_distillation_by_hand():
    """KL(plan || pi) has the gradient pi - plan in a table's logits; the value tends to lambda returns."""
    model = lambda s, a: (MDP.reward[s, a, 0], 1.0, (s + a) % S)
    learner = search_learner(model)
    hparams = rl.SearchHParams(0.5, GAMMA, LAMBDA, VALUE_COEF)
    state = learner.init(jax.random.key(0), hparams)
    got, metrics = jax.jit(learner.step)(state)
    settings = learner.step.args[0]
    _, key_rollout, key_update = jax.random.split(state.key, 3)
    _, trajectory, _ = jax.jit(settings.actor.rollout)(
        state.params, None, state.env_state, key_rollout, state.hparams, None
    )
    obs = np.asarray(trajectory.obs).ravel()
    keys = jax.random.split(jax.random.split(key_update)[0], len(obs))
    plan = jax.jit(jax.vmap(functools.partial(plan_from, settings, state.params, GAMMA)))(obs, keys)
    target = weights_a2c(trajectory)[1].ravel()
    policy, value = np.array(state.params["pi"]), np.array(state.params["v"])
    for i, s in enumerate(obs):
        towards = jax.nn.softmax(plan[i]) - jax.nn.softmax(state.params["pi"][s])
        policy[s] += 0.5 * np.asarray(towards) / len(obs)
        value[s] += 0.5 * VALUE_COEF * (target[i] - state.params["v"][s]) / len(obs)
    close(got.params, {"pi": policy, "v": value})
    kl = np.mean([kl_of(plan[i], state.params["pi"][s]) for i, s in enumerate(obs)])
    close(metrics["search/kl"], kl, rtol=1e-4)


# Precision


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_a_policy_of_another_precision_is_learnt_in_it(dtype):
    """Traced: a scan refuses what changes its type."""
    with jax.enable_x64(dtype == jnp.float64):
        net = nets.make_actor_critic_net(2, (4,))
        cast = lambda *given: jax.tree.map(lambda x: x.astype(dtype), net.init(*given))
        actor = actors.make_actor("CartPole-v1", net._replace(init=cast), num_envs=4, num_steps=8)
        for learner, hparams in (
            (rl.make_actor_critic(actor, segment_length=1), rl.PPOHParams()),
            (rl.make_ppo_kl(actor), rl.PPOKLHParams()),
            (rl.make_trpo(actor), rl.TRPOHParams()),
        ):
            run = functools.partial(train(learner, 2), hparams=hparams)
            state, _ = jax.eval_shape(run, jax.random.key(0))
            assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(dtype)}
