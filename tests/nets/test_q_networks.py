import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.nets.q_networks import make_q_net, make_state_action_net, make_table, support_between

OBS = jnp.array([0.5, -1.0, 2.0])


def start(net, obs=OBS):
    return jax.jit(net.init)(jax.random.key(0), obs)


def test_the_two_heads_agree_when_their_weights_are_tied():
    # A6: Q(s, a) -> scalar with w = (w_s, v), and s -> vector with rows w_s and biases v_a + b.
    scalar, vector = make_state_action_net(2, ()), make_q_net(2, ())
    params = start(scalar)
    kernel, bias = (params["advantage"]["Dense_0"][name] for name in ("kernel", "bias"))
    tied = {"kernel": jnp.tile(kernel[:3], (1, 2)), "bias": kernel[3:, 0] + bias}
    tied = {"advantage": {"Dense_0": tied}}
    assert jax.tree.map(jnp.shape, tied) == jax.tree.map(jnp.shape, start(vector))
    np.testing.assert_allclose(scalar.apply(params, OBS), vector.apply(tied, OBS), rtol=1e-6)


def test_a_duelling_head_centres_its_advantages():
    net = make_q_net(3, (4,), duelling=True)
    params = start(net)
    flat = params | {"advantage": jax.tree.map(jnp.zeros_like, params["advantage"])}
    value = net.apply(flat, OBS)
    np.testing.assert_allclose(value, np.full(3, value[0]))
    np.testing.assert_allclose(net.apply(params, OBS).mean(), value[0], rtol=1e-5)


def test_the_convolution_by_patches_is_a_convolution():
    net = make_q_net(2, (), channels=5)
    image = jax.random.normal(jax.random.key(0), (6, 7, 3))
    params = start(net, image)
    kernel, bias = params["conv"]["kernel"].reshape(3, 3, 3, 5), params["conv"]["bias"]
    hidden = jax.lax.conv_general_dilated(
        image[None], kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]
    hidden = jax.nn.relu(hidden + jnp.broadcast_to(bias, hidden.shape)).ravel()
    head = params["advantage"]["Dense_0"]
    np.testing.assert_allclose(net.apply(params, image), hidden @ head["kernel"] + head["bias"], rtol=1e-4)


def test_noise_has_the_stated_scale_and_no_key_means_none():
    # One linear layer: y = (m + s f(e_i) f(e_o)) x + b + s_b f(e_o), with E f(e)^2 = E|e| = sqrt(2 / pi).
    net = make_q_net(1, (), noisy=True)
    params = start(net)
    layer = params["advantage"]
    plain = OBS @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(net.apply(params, OBS), plain, rtol=1e-6)
    draws = jax.vmap(net.apply, (None, None, 0))(params, OBS, jax.random.split(jax.random.key(1), 20_000))
    second = (2.0 / np.pi) ** 0.5
    scale = 0.5 / 3**0.5
    variance = scale**2 * (second**2 * float(OBS @ OBS) + second)
    np.testing.assert_allclose(draws.mean(), plain[0], atol=4 * (variance / 20_000) ** 0.5)
    np.testing.assert_allclose(draws.var(), variance, rtol=0.1)


def test_distributions_are_reduced_to_their_means():
    support = support_between(-1.0, 1.0, 3)
    by_atoms, by_quantiles = make_q_net(2, (), support=support), make_q_net(2, (), quantiles=3)
    out = jnp.log(jnp.array([[0.2, 0.3, 0.5], [1.0, 1.0, 1.0]]))
    np.testing.assert_allclose(by_atoms.q_values(out), [0.3, 0.0], atol=1e-6)
    np.testing.assert_allclose(by_quantiles.q_values(jnp.array([[1.0, 2.0, 6.0]])), [3.0])
    for net in (by_atoms, by_quantiles):
        assert net.apply(start(net), OBS).shape == (2, 3)


def test_the_table_is_its_own_parameters():
    table = make_table(3, 2)
    params = table.init(jax.random.key(0), 0)
    np.testing.assert_array_equal(params, np.zeros((3, 2)))
    np.testing.assert_array_equal(table.apply(params.at[1].set(jnp.array([4.0, 5.0])), 1), [4.0, 5.0])
    assert np.isnan(table.apply(params, 3)).all()  # of a world with more states


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_q_net(0), "must be at least 1.*num_actions=0"),
        (lambda: make_q_net(2, (0,)), "every hidden width"),
        (lambda: make_q_net(2, quantiles=0), "quantiles=0"),
        (lambda: make_q_net(2, support=jnp.ones(3), quantiles=3), "choose one"),
        (lambda: support_between(1.0, 1.0), "low < high"),
        (lambda: support_between(0.0, 1.0, 1), "atoms >= 2"),
        (lambda: make_q_net(2, channels=4).init(jax.random.key(0), OBS), "needs an image.*channels=0"),
    ],
)
def test_what_is_no_network_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
