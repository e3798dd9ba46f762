import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxrl_align.actors import gym
from jaxrl_align.envs.tabular import make_tabular_environment
from jaxrl_align.learner import train
from jaxrl_align.losses import Categorical, DiagonalGaussian
from jaxrl_align.nets.mlp import Net, make_actor_critic_net, make_gaussian_net
from jaxrl_align.rl.trpo import (
    TRPOHParams,
    conjugate_gradient,
    fisher_vector_product,
    make_trpo,
    trust_region_step,
)
from tests.environments import PROBES, Target

NET = make_actor_critic_net(3, hidden=(4,))
OBS = jax.random.normal(jax.random.key(1), (6, 2))
PARAMS = jax.tree.map(
    lambda x: 0.5 * jax.random.normal(jax.random.key(x.size), x.shape),
    jax.eval_shape(NET.init, jax.random.key(0), OBS[0]),
)
POLICY = {name: leaf for name, leaf in PARAMS.items() if name.startswith("policy")}
policies = lambda params: Categorical(jax.vmap(lambda obs: NET.apply(PARAMS | params, obs)[0])(OBS))
kl = lambda params: jnp.mean(policies(POLICY).kl(policies(params)))
objective = lambda params: jnp.mean(jnp.exp(policies(params).log_prob(jnp.arange(6) % 3)))


@pytest.fixture(scope="module")
def hessian():
    start, unravel = ravel_pytree(POLICY)
    return np.asarray(jax.jit(jax.hessian(lambda x: kl(unravel(x))))(start))


@pytest.mark.slow
def test_products_equal_the_explicit_hessian_and_fisher_matrix(hessian):
    start, unravel = ravel_pytree(POLICY)
    product = jax.jit(jax.vmap(fisher_vector_product(lambda x: kl(unravel(x)), start, 0.3)))
    np.testing.assert_allclose(product(jnp.eye(start.size)), hessian + 0.3 * np.eye(start.size), atol=1e-6)
    # F = E[grad log pi grad log pi^T], summed over every action.
    log_prob = lambda x, a: policies(unravel(x)).log_prob(jnp.full(6, a))
    scores = [jax.jacobian(log_prob)(start, a) for a in range(3)]
    probability = jax.nn.softmax(policies(POLICY).logits)
    fisher = sum(jnp.einsum("n,ni,nj->ij", probability[:, a], s, s) for a, s in enumerate(scores)) / 6
    np.testing.assert_allclose(hessian, fisher, atol=1e-5)


def test_conjugate_gradients_equal_the_dense_solution_and_stop_there():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 12, 12))
    matrix = jnp.asarray(root @ root.transpose(0, 2, 1) / 12 + np.eye(12), jnp.float32)
    b = jnp.asarray(rng.normal(size=(3, 12)), jnp.float32)
    solve = jax.jit(jax.vmap(lambda a, b: conjugate_gradient(lambda v: a @ v, b, 60)))
    np.testing.assert_allclose(solve(matrix, b), jnp.linalg.solve(matrix, b[..., None])[..., 0], atol=1e-4)
    np.testing.assert_array_equal(solve(matrix, jnp.zeros((3, 12))), 0.0)


def test_the_step_does_not_depend_on_the_objectives_unit():
    distance = lambda p: 0.5 * jnp.sum(p**2)
    step = lambda unit: trust_region_step(
        lambda p: unit * jnp.sum(p), distance, jnp.zeros(3), max_kl=0.01, damping=0.0
    )
    for unit in (1.0, 1e-10):
        assert 0.006 < step(unit).kl <= 0.01, unit  # shortened once at most
    assert not step(0.0).params.any()


def test_the_step_is_the_dense_solution_scaled_to_the_bound(hessian):
    """With a tiny bound the quadratic model is exact: KL = delta, direction = (F + damping)^-1 g."""
    start, unravel = ravel_pytree(POLICY)
    step = jax.jit(
        lambda: trust_region_step(objective, kl, POLICY, max_kl=1e-4, damping=0.1, cg_iterations=40)
    )()
    moved = ravel_pytree(step.params)[0] - start
    gradient = np.asarray(jax.grad(lambda x: objective(unravel(x)))(start), np.float64)
    damped = hessian + 0.1 * np.eye(start.size)
    direction = np.linalg.solve(damped, gradient)
    expected = np.sqrt(2e-4 / (direction @ damped @ direction)) * direction
    np.testing.assert_allclose(moved, expected, atol=1e-4 * np.abs(expected).max())
    assert step.trials == 1 and 0 < step.kl <= 1e-4 and step.improvement > 0


@pytest.mark.slow
def test_a_step_that_is_too_long_is_shortened_and_one_that_cannot_rise_is_not_taken():
    step = jax.jit(lambda delta: trust_region_step(objective, kl, POLICY, max_kl=delta, damping=1e-3))(0.5)
    assert step.trials > 1 and 0 < step.kl <= 0.5 and step.improvement > 0
    np.testing.assert_allclose(kl(step.params), step.kl, rtol=1e-4)
    for flat in (lambda params: 0.0 * objective(params), lambda params: jnp.nan * objective(params)):
        step = trust_region_step(flat, kl, POLICY, max_kl=0.01, damping=0.1, max_trials=3)
        assert step.trials == 3 and step.kl == 0 and step.improvement == 0
        jax.tree.map(np.testing.assert_array_equal, step.params, POLICY)


@pytest.mark.optimised
@pytest.mark.slow
def test_no_update_leaves_the_trust_region_and_cartpole_improves():
    """Four members of usual size: there the scipy-like solver that ships with jax failed."""
    actor = gym.make_actor("CartPole-v1", make_actor_critic_net(2), num_envs=8, num_steps=128)
    keys = jax.random.split(jax.random.key(0), 4)
    with jax.debug_key_reuse(True):
        run = jax.jit(jax.vmap(train(make_trpo(actor, critic_epochs=4), 30), (0, None)))
        _, metrics = run(keys, TRPOHParams())
    kl = np.asarray(metrics["policy/kl"])
    assert (kl <= 0.01).all() and (np.median(kl, axis=1) > 0.002).all()
    assert (metrics["policy/improvement"] >= 0).all()
    returns = np.asarray(metrics["episode_return_last100"])
    assert (returns[:, -1] > 2 * returns[:, 1]).all()


def test_trpo_finds_the_best_actions_and_their_values():
    mdp = PROBES["policy-dependent"]
    states, actions = mdp.transition.shape[:2]
    init = lambda key, obs: {"logits": jnp.zeros((states, actions)), "value": jnp.zeros(states)}
    split = lambda params: ({"logits": params["logits"]}, {"value": params["value"]})
    net = Net(init, lambda params, s: (params["logits"][s], params["value"][s]), split)
    actor = gym.make_actor(make_tabular_environment(mdp), net, num_envs=16, num_steps=4)
    learner = make_trpo(actor, critic_epochs=2)
    hparams = TRPOHParams(gamma=0.9, learning_rate=0.05, max_kl=0.05)
    state, _ = jax.jit(train(learner, 150))(jax.random.key(0), hparams)
    np.testing.assert_array_equal(jnp.argmax(state.params["logits"], -1)[:2], [0, 0])
    np.testing.assert_allclose(state.params["value"][:2], [1.8, 2.0], atol=0.1)


@pytest.mark.optimised
@pytest.mark.slow
def test_trpo_moves_continuous_actions_to_their_target_member_by_member():
    net = make_gaussian_net((1,), hidden=(8,))
    actor = gym.make_actor((Target(), None), net, num_envs=32, num_steps=1, distribution=DiagonalGaussian)
    run = train(make_trpo(actor, critic_epochs=1), 60)
    keys = jax.random.split(jax.random.key(0), 2)
    state, metrics = jax.jit(jax.vmap(run, (0, None)))(keys, TRPOHParams(max_kl=0.05))
    assert (metrics["policy/kl"] <= 0.05).all()
    means = jax.vmap(lambda params: net.apply(params, jnp.ones(1))[0][0])(state.params)
    np.testing.assert_allclose(means, 0.6, atol=0.15)
    single, _ = jax.jit(run)(keys[1], TRPOHParams(max_kl=0.05))
    np.testing.assert_allclose(net.apply(single.params, jnp.ones(1))[0][0], means[1], atol=0.02)


def test_what_cannot_work_is_refused():
    make = lambda net, **settings: make_trpo(
        gym.make_actor("CartPole-v1", net, num_envs=4, num_steps=2), **settings
    )
    with pytest.raises(ValueError, match="a policy and a critic without common parameters; .* shared=False"):
        make(make_actor_critic_net(2, hidden=(4,), shared=True))
    learner = make(make_actor_critic_net(2, hidden=(4,)), critic_minibatches=3)
    with pytest.raises(ValueError, match="critic_minibatches must divide trajectories per rollout; got .*=4"):
        jax.eval_shape(lambda key: learner.step(learner.init(key, TRPOHParams())), jax.random.key(0))
