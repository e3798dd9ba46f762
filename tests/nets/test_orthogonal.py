import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.nets.mlp import _orthogonal, make_actor_critic_net


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_orthogonal_kernels_are_orthonormal_times_scale(shape):
    kernel = np.asarray(_orthogonal(2.0)(jax.random.key(1), shape))
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
