"""Returns and advantages against sums written as the definitions have them, O(T^2) or by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import losses as L

from .checks import check

T = 12
RNG = np.random.default_rng(0)
R, V_TM1, V_T, RATIO = RNG.normal(size=(4, T))
RATIO = np.exp(RATIO)
TERMINATED, TRUNCATED = np.zeros(T), np.zeros(T)
TERMINATED[3] = TRUNCATED[7] = TERMINATED[9] = TRUNCATED[9] = 1.0
DISCOUNT = 0.9 * (1 - TERMINATED)
LAMBDA = 0.8 * (1 - TERMINATED) * (1 - TRUNCATED)
STREAM = R, DISCOUNT, LAMBDA


def quadratic_gae(r, discount, lambda_, v_tm1, v_t):
    """A_t = sum_l (prod_{k<l} discount_k lambda_k) delta_{t+l}, term by term."""
    delta = r + discount * v_t - v_tm1
    return [
        sum(np.prod((discount * lambda_)[t:u]) * delta[u] for u in range(t, len(r))) for t in range(len(r))
    ]


def loop_n_step(r, discount, lambda_, v_t, n):
    out = []
    for start in range(len(r)):
        total, weight = 0.0, 1.0
        for t in range(start, min(start + n, len(r))):
            total += weight * r[t]
            weight *= discount[t]
            if lambda_[t] == 0 or t + 1 == min(start + n, len(r)):
                total += weight * v_t[t]
                break
        out.append(total)
    return out


def test_gae_matches_the_double_sum_with_terminations_and_truncations():
    expected = quadratic_gae(*STREAM, V_TM1, V_T)
    check(L.gae, expected, *STREAM, V_TM1, V_T)
    check(L.gae_associative, expected, *STREAM, V_TM1, V_T, atol=1e-5)


@pytest.mark.parametrize(("platform", "loops"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_gae_is_a_loop_on_a_cpu_alone(platform, loops):
    traced = jax.jit(jax.vmap(L.gae)).trace(*[jax.ShapeDtypeStruct((2, 8), jnp.float32)] * 5)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.while" in program) == loops


def test_gae_by_hand():
    """Two steps: delta = (1 + .5*2 - 3, 4 - 2) = (-1, 2), so A = (-1 + .5*.5*2, 2)."""
    check(L.gae, [-0.5, 2.0], [1.0, 4.0], [0.5, 0.0], [0.5, 0.0], [3.0, 2.0], [2.0, 9.0])


def test_termination_wins_and_truncation_bootstraps():
    """Step 9 ends both ways: the value after it must not matter. Step 7's must, but no trace crosses it."""
    advantage = L.gae(*STREAM, V_TM1, V_T)
    np.testing.assert_allclose(advantage[9], R[9] - V_TM1[9], rtol=1e-6)
    np.testing.assert_allclose(advantage[7], R[7] + 0.9 * V_T[7] - V_TM1[7], rtol=1e-6)
    jacobian = jax.jacobian(lambda r: L.gae(r, DISCOUNT, LAMBDA, V_TM1, V_T))(jnp.asarray(R))
    for end in (3, 7, 9):
        assert not np.any(jacobian[: end + 1, end + 1 :])


def test_discounted_returns_match_the_definition():
    expected = [sum(np.prod(DISCOUNT[t:u]) * R[u] for u in range(t, T)) for t in range(T)]
    check(L.discounted_returns, expected, R, DISCOUNT)
    check(L.trajectory_return, expected[0], R, DISCOUNT)
    expected = np.add(expected, [np.prod(DISCOUNT[t:]) * 5.0 for t in range(T)])
    check(L.discounted_returns, expected, R, DISCOUNT, 5.0)


def test_reward_to_go_by_hand():
    check(L.reward_to_go, [6.0, 5.0, 3.0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("n", [1, 2, 5, T, T + 4])
def test_n_step_returns_match_a_loop(n):
    cut = (1 - TERMINATED) * (1 - TRUNCATED)
    expected = np.asarray(loop_n_step(R, DISCOUNT, cut, V_T, n))
    check(L.n_step_returns, expected, R, DISCOUNT, cut, V_T, n=n)
    check(L.n_step_error, expected - V_TM1, R, DISCOUNT, cut, V_TM1, V_T, n=n)


def test_lambda_returns_are_gae_plus_value():
    values = np.append(V_TM1, 0.3)
    expected = np.add(quadratic_gae(*STREAM, values[:-1], values[1:]), values[:-1])
    check(L.lambda_returns, expected, *STREAM, values[1:])
    check(L.lambda_error, expected - values[:-1], *STREAM, values[:-1], values[1:])


def test_vtrace_matches_the_definition():
    rho, c, pg = np.minimum(1.1, RATIO), np.minimum(0.9, RATIO), np.minimum(1.3, RATIO)
    values = np.append(V_TM1, 0.3)
    delta = rho * (R + DISCOUNT * values[1:] - V_TM1)
    decay = DISCOUNT * LAMBDA * c
    target = V_TM1 + [sum(np.prod(decay[t:u]) * delta[u] for u in range(t, T)) for t in range(T)]
    after = LAMBDA * np.append(target[1:], 0.3) + (1 - LAMBDA) * values[1:]
    expected = L.VTrace(target, pg * (R + DISCOUNT * after - V_TM1))
    clips = {"clip_rho": 1.1, "clip_c": 0.9, "clip_pg_rho": 1.3}
    check(L.vtrace, expected, *STREAM, V_TM1, values[1:], RATIO, **clips)


def test_vtrace_on_policy_is_gae():
    values = np.append(V_TM1, 0.3)
    stream = *STREAM, values[:-1], values[1:]
    got = L.vtrace(*stream, np.ones(T))
    np.testing.assert_allclose(got.target - values[:-1], L.gae(*stream), atol=1e-5)


def test_targets_are_stopped():
    grad = jax.grad(lambda v: L.lambda_error(*STREAM, jnp.zeros(T), v).sum())(jnp.asarray(V_T))
    assert not np.any(grad)
    grad = jax.grad(lambda v: L.n_step_error(R, DISCOUNT, LAMBDA, jnp.zeros(T), v, n=3).sum())(
        jnp.asarray(V_T)
    )
    assert not np.any(grad)


@pytest.mark.parametrize("f", [L.gae, L.gae_associative])
def test_shapes_are_refused(f):
    with pytest.raises(AssertionError):
        f(*STREAM, V_TM1, V_T[:-1])
    with pytest.raises(AssertionError):
        f(*[np.ones((2, 3))] * 5)
    with pytest.raises(ValueError, match="at least one time step"):
        f(*[np.ones(0)] * 5)


def test_n_is_checked():
    with pytest.raises(ValueError, match="n=0"):
        L.n_step_returns(*STREAM, V_T, n=0)
