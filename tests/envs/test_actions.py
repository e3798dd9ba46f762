"""Draws as the environment's actions, at the edges of its Box."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.envs import MultiDiscrete, spaces, to_environment
from jaxrl_align.losses import DiagonalGaussian, MultiCategorical, TanhGaussian

BOTH = pytest.mark.parametrize("kind", [DiagonalGaussian, TanhGaussian])


@BOTH
def test_draws_far_out_are_the_bounds_and_never_beyond(kind):
    """In float32, low + (high - low) is more than high here."""
    low, high = np.float32(-1.9), np.float32(0.8)
    assert low + (high - low) > high
    act = to_environment(kind, spaces.Box(low, high, (2,)))
    np.testing.assert_array_equal(act(jnp.array([-20.0, 20.0])), [low, high])


@BOTH
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_a_box_of_whole_numbers_gets_the_nearest(kind, dtype):
    act = to_environment(kind, spaces.Box(1.0, 4.0, (3,), dtype))
    draws = jnp.array([2.7, 3.2, 2.5001]) if kind is DiagonalGaussian else jnp.array([0.0001, -0.1, 20.0])
    actions = act(draws)
    assert actions.dtype == dtype
    np.testing.assert_array_equal(actions, [3, 3, 3] if kind is DiagonalGaussian else [3, 2, 4])


def test_a_choice_is_left_as_it_is():
    draw = jnp.array([1, 2])
    assert to_environment(MultiCategorical, MultiDiscrete((2, 3)))(draw) is draw


def test_a_tanh_gaussians_draw_is_squashed_on_its_way():
    fit = to_environment(TanhGaussian, spaces.Box(-1.0, 2.0, (1,)))
    np.testing.assert_allclose(fit(jnp.array([0.5])), -1.0 + 1.5 * (np.tanh(0.5) + 1.0), rtol=1e-6)
