import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.nets.layered import fan_in_uniform, make_layered_net

NET = make_layered_net(3, (4, 2), 5)


def test_layers_run_in_order_and_in_parts():
    params = NET.init(jax.random.key(0))
    assert [layer["kernel"].shape for layer in params["layers"]] == [(3, 4), (4, 2)]
    assert params["head"]["kernel"].shape == (2, 5)
    x = np.array([0.5, -1.0, 2.0], np.float32)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    first, second = (np.asarray(layer["kernel"]) for layer in params["layers"])
    code = sigmoid(sigmoid(x @ first) @ second)
    np.testing.assert_allclose(NET.encode(params["layers"], x), code, rtol=1e-5)
    in_parts = NET.encode(params["layers"][1:], NET.encode(params["layers"][:1], x))
    np.testing.assert_array_equal(in_parts, NET.encode(params["layers"], x))
    head = params["head"] | {"bias": jnp.arange(5.0)}
    logits = code @ np.asarray(head["kernel"]) + np.arange(5)
    np.testing.assert_allclose(NET.classify(head, code), logits, rtol=1e-5)


def test_no_layers_make_a_linear_classifier():
    net = make_layered_net(3, (), 2)
    params = net.init(jax.random.key(0))
    assert params["layers"] == () and params["head"]["kernel"].shape == (3, 2)
    np.testing.assert_array_equal(net.encode((), jnp.ones(3)), jnp.ones(3))


def test_old_kernels_fill_their_range():
    kernel = fan_in_uniform(jax.random.key(0), (100, 400))
    assert 0.0999 < jnp.abs(kernel).max() <= 0.1
    np.testing.assert_allclose(kernel.std(), 0.1 / 3**0.5, rtol=0.01)


def test_images_of_another_size_and_empty_layers_are_refused():
    with pytest.raises(ValueError, match="the 3 values that the layer reads; got 4"):
        NET.encode(NET.init(jax.random.key(0))["layers"], jnp.ones(4))
    with pytest.raises(ValueError, match="at least 1; got input_dim=3, widths=\\(0,\\)"):
        make_layered_net(3, (0,), 2)
