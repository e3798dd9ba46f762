"""The gated recurrent unit against its printed equations."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.nets import make_actor_critic_net, with_memory
from tests.tiny import disturb


def test_one_step_of_the_unit_is_the_printed_one():
    """r, z = sigma(W x + U h + b), n = tanh(W_n x + b_n + r (U_n h + c_n)), h' = (1 - z) n + z h."""
    inner = make_actor_critic_net(2, hidden=(3,))
    net = with_memory(inner, width=2)
    x, h = jnp.array([[0.3, -1.0], [0.5, 2.0]]), jnp.array([0.7, -0.4])
    params = disturb(net.init(jax.random.key(0), x), jax.random.key(1), 0.5)
    after, logits, value = net.apply(params, h, x)
    gru = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["gru"])
    seen = np.ravel(x) @ gru["input"]["kernel"] + gru["input"]["bias"]
    kept = np.asarray(h) @ gru["memory"]["kernel"] + gru["memory"]["bias"]
    sigma = lambda a: 1 / (1 + np.exp(-a))
    r, z = sigma(seen[:2] + kept[:2]), sigma(seen[2:4] + kept[2:4])
    expected = (1 - z) * np.tanh(seen[4:] + r * kept[4:]) + z * np.asarray(h)
    np.testing.assert_allclose(after, expected, rtol=1e-5)
    both = inner.apply(params["net"], jnp.concatenate([jnp.ravel(x), after]))
    np.testing.assert_allclose(logits, both[0], rtol=1e-5)
    np.testing.assert_allclose(value, both[1], rtol=1e-5)
