"""One protocol: what a learner cannot use it refuses, and a fresh state owns its buffers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import actors, envs, nets, rl
from jaxrl_align.types import Actor
from tests.environments import PROBES
from tests.tiny import bits

MDP = PROBES["policy-dependent"]
ENV = envs.make_tabular_environment(MDP)
STATES, ACTIONS = MDP.transition.shape[:2]
TABLE = nets.Net(
    lambda key, obs: {"logits": jnp.zeros((STATES, ACTIONS)), "value": jnp.zeros(STATES)},
    lambda params, s: (params["logits"][s], params["value"][s]),
    lambda params: ({"logits": params["logits"]}, {"value": params["value"]}),
)
POLICY = actors.make_actor(ENV, TABLE, num_envs=4, num_steps=2)
VALUES = actors.make_value_actor(ENV, nets.make_table(STATES, ACTIONS), num_envs=4, num_steps=2)
LEARNERS = {
    "ppo": (lambda: rl.make_actor_critic(POLICY, segment_length=1), rl.PPOHParams()),
    "trpo": (lambda: rl.make_trpo(POLICY, critic_epochs=1), rl.TRPOHParams()),
    "search": (
        lambda: rl.make_search_learner(POLICY, TABLE.apply, lambda s, a: (1.0, 0.0, s), simulations=2),
        rl.SearchHParams(),
    ),
    "dqn": (lambda: rl.make_dqn(VALUES, capacity=80, batch_size=4, warmup_steps=8), rl.DQNHParams()),
    "online q": (lambda: rl.make_online_q(VALUES), rl.DQNHParams()),
    "q-learning": (lambda: rl.make_q_learning(VALUES), rl.QLearningHParams()),
}
EVERY = pytest.mark.parametrize("name", LEARNERS)


@functools.cache
def start(name):
    make, hparams = LEARNERS[name]
    learner = make()
    return learner, jax.jit(learner.init)(jax.random.key(0), jax.tree.map(jnp.float32, hparams))


@EVERY
def test_a_batch_that_a_learner_cannot_use_is_refused(name):
    learner, state = start(name)
    for batch in ("nonsense", jnp.ones((4, 2))):
        with pytest.raises(ValueError, match="uses no batch; got one of type .*; leave it out"):
            learner.step(state, batch)


@pytest.mark.parametrize("name", ["search", "q-learning"])
def test_frozen_parameters_that_a_learner_cannot_use_are_refused(name):
    learner, state = start(name)
    with pytest.raises(ValueError, match="uses no frozen; got one of type dict"):
        learner.step(state, None, {"logits": jnp.zeros(3)})


@EVERY
def test_a_fresh_state_may_be_donated(name):
    """No buffer is in it twice, and what `init` was given stays."""
    make, hparams = LEARNERS[name]
    learner = make()
    hparams = jax.tree.map(jnp.float32, hparams)
    actor = VALUES if name in ("dqn", "online q", "q-learning") else POLICY
    params = actor.init_params(jax.random.key(1))
    given = bits((params, hparams))
    state = learner.init(jax.random.key(0), hparams, params)
    pointers = [
        x.unsafe_buffer_pointer() for x in jax.tree.leaves(state) if x.dtype != state.key.dtype and x.size
    ]
    assert len(set(pointers)) == len(pointers)
    state, _ = jax.jit(learner.step, donate_argnums=0)(state)
    assert bits((params, hparams)) == given and state.step == 1


def test_a_part_trains_over_its_frozen_base():
    """With the critic frozen, the policy moves as in whole training and the state holds nothing else."""
    learner = rl.make_actor_critic(POLICY, segment_length=1, epochs=1, minibatches=1)
    base = POLICY.init_params(jax.random.key(0))
    part = {"logits": base["logits"]}
    hparams = rl.PPOHParams(learning_rate=0.1)
    state, _ = jax.jit(learner.step)(learner.init(jax.random.key(0), hparams, part), None, base)
    whole, _ = jax.jit(learner.step)(learner.init(jax.random.key(0), hparams, base))
    assert set(state.params) == {"logits"} and bits(state.params) != bits(part)
    np.testing.assert_array_equal(
        jnp.sign(state.params["logits"] - base["logits"]), jnp.sign(whole.params["logits"] - base["logits"])
    )


@pytest.mark.slow
def test_dqn_reads_the_base_under_its_part():
    net = nets.make_q_net(ACTIONS, (4,))
    phi = lambda s: jax.nn.one_hot(s, STATES)
    actor = actors.make_value_actor(ENV, net, num_envs=4, num_steps=2, preprocess=phi)
    learner = rl.make_dqn(actor, capacity=80, batch_size=4, warmup_steps=8)
    base = net.init(jax.random.key(0), jnp.zeros(STATES))
    part = nets.select(base, "advantage/*")
    state = jax.jit(learner.init)(jax.random.key(0), rl.DQNHParams(), part, base)
    state, metrics = jax.jit(learner.step)(state, None, base)
    assert jax.tree.structure(state.params) == jax.tree.structure(part)
    assert jax.tree.structure(state.env_state.target) == jax.tree.structure(part)
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: rl.make_actor_critic(VALUES),
            "an actor that evaluates trajectories; got one of action values",
        ),
        (lambda: rl.make_trpo(VALUES), "declares no Net.split_params"),
        (lambda: rl.make_trpo(POLICY._replace(split_params=None)), "declares no Net.split_params"),
        (lambda: rl.make_dqn(POLICY, capacity=80), "needs an actor that has them; got one of a policy"),
        (lambda: rl.make_online_q(POLICY), "needs an actor that has them; got one of a policy"),
    ],
)
def test_an_actor_that_cannot_do_what_a_learner_needs_is_refused_when_it_is_built(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_both_kinds_of_experience_have_environments_first():
    for actor, hparams in ((POLICY, rl.PPOHParams()), (VALUES, rl.Exploration(1.0))):
        params = actor.init_params(jax.random.key(0))
        begun = actor.init_env(jax.random.key(1), hparams)
        _, experience, _ = actor.rollout(params, None, begun, jax.random.key(2), hparams, None)
        assert experience.reward.shape == (4, 2)


def test_an_actor_declares_whether_its_steps_stand_alone():
    """A learner of single steps evaluates a trajectory's steps together only where the actor allows it."""
    seen = []

    def evaluate(params, frozen, trajectory):
        seen.append(trajectory.reward.shape)
        return POLICY.evaluate(params, frozen, trajectory)

    for stepwise in (True, False):
        learner = rl.make_actor_critic(
            POLICY._replace(evaluate=evaluate, stepwise=stepwise), segment_length=1, minibatches=2
        )
        jax.eval_shape(lambda key: learner.step(learner.init(key, rl.PPOHParams())), jax.random.key(0))  # noqa: B023
    assert seen == [(4,), (1,)]
    assert Actor(*[None] * 3).stepwise is False
