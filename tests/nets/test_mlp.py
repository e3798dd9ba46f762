import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.nets import products
from jaxrl_align.nets.mlp import (
    apply_rows,
    make_actor_critic_net,
    make_gaussian_net,
    make_multi_discrete_net,
    orthogonal,
)
from jaxrl_align.nets.products import dense_product


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_orthogonal_kernels_are_orthonormal_times_scale(shape):
    kernel = np.asarray(orthogonal(2.0)(jax.random.key(1), shape))
    gram = kernel.T @ kernel if shape[0] >= shape[1] else kernel @ kernel.T
    np.testing.assert_allclose(gram, 4.0 * np.eye(min(shape)), atol=1e-5)
    np.testing.assert_array_equal(kernel, jax.nn.initializers.orthogonal(2.0)(jax.random.key(1), shape))


def all_equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from all_equations(inner)


@pytest.mark.slow
def test_members_are_initialised_without_a_batched_factorisation():
    """Batched LAPACK calls side by side lock up XLA's CPU thread pool; see the comment in nets/mlp.py."""
    net = make_actor_critic_net(2)
    init = jax.vmap(jax.vmap(net.init, (0, None)), (0, None))
    keys = jax.random.split(jax.random.key(0), (2, 3))
    equations = list(all_equations(jax.make_jaxpr(init)(keys, jnp.zeros(4)).jaxpr))
    factorised = [e.invars[0].aval.shape for e in equations if e.primitive.name in ("qr", "geqrf")]
    assert len(factorised) == 6 and all(len(shape) == 2 for shape in factorised)
    members, single = jax.jit(init)(keys, jnp.zeros(4)), net.init(keys[1, 2], jnp.zeros(4))
    for a, b in zip(jax.tree.leaves(members), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(a[1, 2], b, atol=1e-6)
    with jax.debug_key_reuse(True):
        net.init(keys[0, 0], jnp.zeros(4))


def test_policy_and_critic_against_numpy():
    net = make_actor_critic_net(3, hidden=(5, 4), activation=jax.nn.relu)
    obs = jnp.arange(6.0).reshape(2, 3)  # flattened
    params = net.init(jax.random.key(0), obs)
    assert jax.tree.map(jnp.shape, params["policy_head"]) == {"kernel": (4, 3), "bias": (3,)}
    params = jax.tree.map(lambda x: x + 0.1, params)

    def forward(name):
        x = np.arange(6.0)
        for layer in (f"{name}_0", f"{name}_1"):
            x = np.maximum(x @ params[layer]["kernel"] + params[layer]["bias"], 0)
        return x @ params[f"{name}_head"]["kernel"] + params[f"{name}_head"]["bias"]

    logits, value = net.apply(params, obs)
    np.testing.assert_allclose(logits, forward("policy"), rtol=1e-5)
    np.testing.assert_allclose(value, forward("value")[0], rtol=1e-5)
    assert logits.shape == (3,) and value.shape == ()


@pytest.mark.slow
def test_the_first_policy_is_nearly_uniform_and_nothing_is_shared():
    net = make_actor_critic_net(4)
    params = net.init(jax.random.key(0), jnp.zeros(8))
    logits, _ = net.apply(params, jnp.full(8, 3.0))
    np.testing.assert_allclose(jax.nn.softmax(logits), 0.25, atol=0.01)
    grads = jax.grad(lambda p: net.apply(p, jnp.ones(8))[1])(params)
    assert all((g == 0).all() for name in grads if "policy" in name for g in grads[name].values())


@pytest.mark.parametrize("actions, hidden", [(0, (4,)), (2, (4, 0))])
def test_empty_layers_are_refused(actions, hidden):
    with pytest.raises(ValueError, match="must be at least 1; got num_actions="):
        make_actor_critic_net(actions, hidden=hidden)


def test_a_convolution_reads_images_alone():
    net = make_actor_critic_net(2, hidden=(3,), activation=jax.nn.relu, shared=True, channels=2)
    image = jax.random.normal(jax.random.key(1), (4, 5, 2))
    params = jax.jit(net.init)(jax.random.key(0), image)
    kernel = np.asarray(params["trunk_conv"]["kernel"]).reshape(3, 3, 2, 2)
    x = jax.lax.conv_general_dilated(
        image[None], kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = np.maximum(np.asarray(x), 0).ravel()
    x = np.maximum(x @ params["trunk_0"]["kernel"], 0)
    np.testing.assert_allclose(net.apply(params, image)[0], x @ params["policy_head"]["kernel"], atol=1e-5)
    with pytest.raises(ValueError, match=r"needs an image .* got shape \(4,\); take channels=0"):
        net.init(jax.random.key(0), jnp.zeros(4))


@pytest.mark.parametrize(
    "net, shape",
    [
        (make_actor_critic_net(3, hidden=(4, 5)), (2, 3)),
        (make_actor_critic_net(3, hidden=(4,), shared=True, action_values=True), (2,)),
        (make_actor_critic_net(2, hidden=(4,), channels=3), (4, 5, 2)),
        (make_gaussian_net((2, 2), hidden=(4,), log_std=-0.5), (3,)),
        (make_multi_discrete_net((2, 3), hidden=(4,)), (3,)),
    ],
)
def test_rows_are_read_and_differentiated_as_under_vmap(net, shape):
    obs = jax.random.normal(jax.random.key(1), (7, *shape))
    params = net.init(jax.random.key(0), obs[0])
    by_vmap = lambda params, obs: jax.vmap(net.apply, (None, 0))(params, obs)

    def loss(read, params, obs):
        outputs = jax.tree.leaves(read(params, obs))
        return sum(jnp.sum(jnp.where(jnp.isfinite(x), jnp.sin(x), 0.0)) for x in outputs)

    rows = lambda params, obs: apply_rows(net, params, obs)
    for got, expected in [
        (rows(params, obs), by_vmap(params, obs)),
        (jax.grad(loss, (1, 2))(rows, params, obs), jax.grad(loss, (1, 2))(by_vmap, params, obs)),
    ]:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), got, expected)
        assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, expected)


def test_a_net_whose_apply_was_replaced_is_read_through_the_new_one():
    net = make_actor_critic_net(2, hidden=(3,))
    params, obs = net.init(jax.random.key(0), jnp.ones(4)), jnp.ones((5, 4))
    halved = net._replace(apply=lambda params, obs: net.apply(params, obs / 2))
    np.testing.assert_allclose(
        apply_rows(halved, params, obs)[1], apply_rows(net, params, obs / 2)[1], atol=1e-6
    )


@pytest.mark.parametrize("inputs, outputs", [(2, 5), (5, 2)])
def test_a_products_gradient_for_members_and_beyond_the_first(inputs, outputs):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, inputs)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(size=(2, inputs, outputs)).astype(np.float32)

    def derivatives(multiply):
        loss = lambda x, kernel: jnp.sum(jnp.sin(multiply(x, kernel)))
        along = jax.jvp(jax.grad(lambda kernel: loss(x[0], kernel)), (kernel[0],), (kernel[1],))[1]
        return multiply(x[0], kernel[0]), *jax.vmap(jax.grad(loss, (0, 1)))(x, kernel), along

    for got, expected in zip(derivatives(dense_product), derivatives(jnp.matmul), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_products_gradient_is_the_same_on_every_platform():
    x, y = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    for ours in (products._sum_outer, products._sum_outer_on_cpu):
        np.testing.assert_allclose(ours(x, y[:, :2]), x.T @ y[:, :2], atol=1e-5)
