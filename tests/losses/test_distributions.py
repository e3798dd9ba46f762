"""Distributions: densities that integrate to 1, samples that follow them, entropies and divergences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import losses as L

from .checks import check

LOGITS = jnp.array([0.3, -1.0, 2.0, -jnp.inf])
MEAN, LOG_STD = jnp.array([0.5, -1.0]), jnp.array([0.2, -0.5])


def test_categorical():
    probs = np.exp([0.3, -1.0, 2.0]) / np.exp([0.3, -1.0, 2.0]).sum()
    check(lambda x, a: L.Categorical(x).log_prob(a), np.log(probs[2]), LOGITS, 2)
    check(lambda x: L.Categorical(x).entropy(), -np.sum(probs * np.log(probs)), LOGITS)
    check(lambda x: L.Categorical(x).mode(), 2, LOGITS)
    check(
        lambda x: L.Categorical(x).kl(L.Categorical(jnp.zeros(4))), np.sum(probs * np.log(probs * 4)), LOGITS
    )
    draws = jax.vmap(L.Categorical(LOGITS).sample)(jax.random.split(jax.random.key(0), 20_000))
    observed = np.bincount(draws, minlength=4) / 20_000
    assert np.all(np.abs(observed[:3] - probs) < 4 * np.sqrt(probs * (1 - probs) / 20_000))
    assert observed[3] == 0


def test_a_product_of_categoricals_is_their_sum():
    """Two choices, the second of two actions only; joint probabilities by hand."""
    logits = jnp.array([[0.3, -1.0, 2.0], [0.5, 0.0, -jnp.inf]])
    other = jnp.array([[0.0, 0.0, 0.0], [0.0, 1.0, -jnp.inf]])
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in map(np.asarray, (logits, other)))
    joint, joint_q = (np.outer(x[0], x[1])[:, :2] for x in (p, q))
    check(lambda x, a: L.MultiCategorical(x).log_prob(a), np.log(joint[2, 1]), logits, jnp.array([2, 1]))
    check(lambda x: L.MultiCategorical(x).entropy(), -np.sum(joint * np.log(joint)), logits)
    check(lambda x: L.MultiCategorical(x).mode(), [2, 0], logits)
    kl = np.sum(joint * np.log(joint / joint_q))
    check(lambda x, y: L.MultiCategorical(x).kl(L.MultiCategorical(y)), kl, logits, other)
    draws = jax.vmap(L.MultiCategorical(logits).sample)(jax.random.split(jax.random.key(0), 20_000))
    observed = np.bincount(draws[:, 0] * 2 + draws[:, 1], minlength=6) / 20_000
    expected = joint.ravel()
    assert np.all(np.abs(observed - expected) < 4 * np.sqrt(expected * (1 - expected) / 20_000))
    gradient = jax.grad(lambda x: L.MultiCategorical(x).entropy())(logits)
    assert np.isfinite(gradient).all() and gradient[1, 2] == 0


def test_diagonal_gaussian():
    gaussian = L.DiagonalGaussian(MEAN, LOG_STD)
    expected = -0.5 * 2 * np.log(2 * np.pi) - 0.2 + 0.5
    check(lambda m, s, x: L.DiagonalGaussian(m, s).log_prob(x), expected, MEAN, LOG_STD, MEAN)
    check(lambda m, s: L.DiagonalGaussian(m, s).mode(), MEAN, MEAN, LOG_STD)
    draws = jax.vmap(gaussian.sample)(jax.random.split(jax.random.key(0), 20_000))
    log_prob = jax.vmap(gaussian.log_prob)(draws)
    assert abs(float(-log_prob.mean() - gaussian.entropy())) < 4 * float(log_prob.std()) / np.sqrt(20_000)
    check(lambda m, s: L.DiagonalGaussian(m, s).entropy(), gaussian.entropy(), MEAN, LOG_STD)
    check(lambda m, s: L.DiagonalGaussian(m, s).kl(L.DiagonalGaussian(m, s)), 0.0, MEAN, LOG_STD)


def test_tanh_gaussian_density_integrates_to_one():
    grid = jnp.linspace(-1, 1, 20_001)[1:-1]
    log_prob = jax.vmap(lambda a: L.TanhGaussian(MEAN[:1], LOG_STD[:1]).log_prob(jnp.arctanh(a)[None]))
    density = jnp.exp(log_prob(grid))
    np.testing.assert_allclose(jnp.sum(density) * 1e-4, 1.0, atol=2e-3)


def test_tanh_gaussian():
    tanh, other = L.TanhGaussian(MEAN, LOG_STD), L.TanhGaussian(MEAN + 1, LOG_STD + 0.3)
    draws = jax.vmap(tanh.sample)(jax.random.split(jax.random.key(0), 20_000))
    log_prob = jax.vmap(tanh.log_prob)(draws)
    standard_error = float(log_prob.std()) / np.sqrt(20_000)
    assert abs(float(-log_prob.mean() - tanh.entropy())) < 4 * standard_error
    log_ratio = log_prob - jax.vmap(other.log_prob)(draws)
    assert abs(float(log_ratio.mean() - tanh.kl(other))) < 4 * float(log_ratio.std()) / np.sqrt(20_000)
    check(lambda m, s: L.TanhGaussian(m, s).mode(), MEAN, MEAN, LOG_STD)
    check(lambda m, s: L.TanhGaussian(m, s).entropy(), tanh.entropy(), MEAN, LOG_STD)
    x = jnp.array([0.3, -0.2])
    expected = L.DiagonalGaussian(MEAN, LOG_STD).log_prob(x) - np.log(1 - np.tanh(x) ** 2).sum()
    check(lambda m, s, x: L.TanhGaussian(m, s).log_prob(x), expected, MEAN, LOG_STD, x)


@pytest.mark.parametrize("mean", [0.0, 3.0, 7.0, 10.0, -10.0])
def test_the_expected_score_is_zero_however_saturated(mean):
    """E[d log p / d mean] = 0; judged by tanh(x) it was -12.4 at a mean of 10."""
    log_std = jnp.full(1, -1.0)
    score = jax.grad(lambda m, x: L.TanhGaussian(m, log_std).log_prob(x))
    draws = jax.vmap(L.TanhGaussian(jnp.full(1, mean), log_std).sample)(
        jax.random.split(jax.random.key(0), 4096)
    )
    scores = jax.vmap(score, (None, 0))(jnp.full(1, mean), draws)
    assert abs(float(scores.mean())) < 4 * float(scores.std()) / 64
    np.testing.assert_allclose(scores.std(), np.exp(1.0), rtol=0.05)  # and its deviation is 1 / std


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [(0.5, 0.01, -3.426539), (0.0, 8.0, -7.963143), (3.0, 30.0, -41.927568), (20.0, 1.0, -37.194767)],
)
def test_the_entropy_of_actions_near_the_bounds(mean, std, expected):
    """By scipy.integrate.quad in pieces; where the mean is 20 also by hand, h(x) + 2 log 2 - 40."""
    found = L.TanhGaussian(jnp.full(1, mean), jnp.log(jnp.full(1, std))).entropy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_they_are_pytrees_with_batch_axes():
    batch = jax.vmap(lambda m: L.TanhGaussian(m, LOG_STD))(jnp.stack([MEAN, -MEAN, MEAN]))
    assert batch.entropy().shape == batch.kl(batch).shape == (3,)
    assert batch.sample(jax.random.key(0)).shape == (3, 2)
