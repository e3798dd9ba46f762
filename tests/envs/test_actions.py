"""Draws as the environment's actions, at the edges of its Box."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import actors, nets
from jaxrl_align.envs import MultiDiscrete, num_actions, spaces, to_environment
from jaxrl_align.losses import DiagonalGaussian, MultiCategorical, TanhGaussian
from tests.environments import Lock, Ticks

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


def test_a_space_of_ones_own_with_n_is_a_choice_for_every_actor():
    class Own(Ticks):
        def action_space(self, params):
            return SimpleNamespace(n=2, shape=(), sample=lambda key: jax.random.randint(key, (), 0, 2))

    sizes = {"num_envs": 1, "num_steps": 1}
    assert num_actions((Own(), None)) == 2
    actors.make_value_actor((Own(), None), nets.make_q_net(2), **sizes)
    actors.make_actor((Own(), None), nets.make_actor_critic_net(2), **sizes)
    with pytest.raises(ValueError, match="expected a discrete action space, got MultiDiscrete"):
        num_actions((Lock(), None))


def test_a_choice_is_left_as_it_is():
    draw = jnp.array([1, 2])
    assert to_environment(MultiCategorical, MultiDiscrete((2, 3)))(draw) is draw


def test_a_tanh_gaussians_draw_is_squashed_on_its_way():
    fit = to_environment(TanhGaussian, spaces.Box(-1.0, 2.0, (1,)))
    np.testing.assert_allclose(fit(jnp.array([0.5])), -1.0 + 1.5 * (np.tanh(0.5) + 1.0), rtol=1e-6)
