"""Likelihoods, reconstruction, corruption, masked means and whitening."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import losses as L
from jaxrl_align.losses import _arrays
from jaxrl_align.losses._arrays import pick

from .checks import check

PROBS = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
LOGITS, TOKENS = np.log(PROBS), np.array([1, 2])


def test_token_losses_by_hand():
    check(L.token_log_prob, np.log([0.25, 0.7]), LOGITS + 3.0, TOKENS)
    check(L.next_token_loss, -np.log([0.25, 0.7]), LOGITS + 3.0, TOKENS)
    check(L.next_token_loss, -np.log([0.25, 0.7]) + 0.1 * 9.0, LOGITS + 3.0, TOKENS, z_loss=0.1)
    smoothed = -0.8 * np.log([0.25, 0.7]) - 0.2 * np.log(PROBS).mean(1)
    check(L.next_token_loss, smoothed, LOGITS + 3.0, TOKENS, label_smoothing=0.2)


def test_logits_that_are_ruled_out_count_only_where_labels_are_smoothed():
    ruled_out = np.array([[0.0, 1.0, -np.inf]])
    loss = lambda **settings: float(L.next_token_loss(ruled_out, np.array([1]), **settings)[0])
    assert loss() == pytest.approx(np.log1p(np.exp(-1.0)))
    assert loss(label_smoothing=jnp.float32(0.0)) != loss() and loss(label_smoothing=0.1) == np.inf


def test_a_chosen_logits_gradient_is_the_same_by_comparing():
    """What an accelerator computes; here the CPU's gather is what is differentiated."""
    x = jax.random.normal(jax.random.key(0), (3, 4, 5))
    index = jnp.array([[0, 4, 2, 2], [1, 1, 0, 3], [4, 0, 0, 7]])  # 7: out of range
    weight = jnp.arange(1.0, 13.0).reshape(3, 4).at[2, 3].set(0.0)
    chosen = lambda f: jax.grad(lambda x: jnp.sum(weight * jnp.nan_to_num(f(x, index)) ** 2))(x)
    by_hand = np.zeros(x.shape)
    for i, j in np.ndindex(3, 4):
        if (k := int(index[i, j])) < 5:
            by_hand[i, j, k] = 2 * weight[i, j] * x[i, j, k]
    for f in (pick, _arrays._choose_by_comparing):
        np.testing.assert_allclose(chosen(f), by_hand, rtol=1e-6)
    tangent = jax.random.normal(jax.random.key(1), x.shape)
    moved = jax.jvp(lambda x: pick(x, index), (x,), (tangent,))[1]
    valid = index < 5
    np.testing.assert_allclose(moved[valid], pick(tangent, index)[valid], rtol=1e-6)
    np.testing.assert_allclose(
        jax.hessian(lambda x: pick(x, jnp.array(1)) ** 3)(x[0, 0])[1, 1], 6 * x[0, 0, 1], rtol=1e-5
    )


@pytest.mark.parametrize(("platform", "scatters"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_accelerators_scatter_no_gradient_of_a_token_loss(platform, scatters):
    gradient = jax.grad(lambda logits: jnp.sum(jax.vmap(L.next_token_loss)(logits, jnp.zeros((2, 3), int))))
    traced = jax.jit(gradient).trace(jax.ShapeDtypeStruct((2, 3, 5), jnp.float32))
    # The branches of other platforms are in no program for one.
    assert ("scatter" in traced.lower(lowering_platforms=(platform,)).as_text()) == scatters


def test_sequence_log_prob_is_the_sum_over_tokens():
    sequence = np.prod([0.25, 0.7])
    np.testing.assert_allclose(jnp.exp(L.token_log_prob(LOGITS, TOKENS).sum()), sequence, rtol=1e-6)


def test_chunks_change_nothing_but_the_memory():
    """Values and gradients are equal, and the compiled gradient needs less than half the temporaries."""
    length, width, vocab = 256, 8, 2048
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (length, width))
    head = jax.random.normal(keys[1], (width, vocab))
    tokens = jax.random.randint(keys[2], (length,), 0, vocab)
    whole = lambda hidden, head: L.token_log_prob(hidden @ head, tokens).sum()
    chunked = lambda hidden, head: L.token_log_prob_chunked(
        hidden, tokens, lambda h: h @ head, chunk_size=32
    ).sum()
    compiled = [
        jax.jit(jax.value_and_grad(f, (0, 1))).lower(hidden, head).compile() for f in (whole, chunked)
    ]
    for a, b in zip(*(jax.tree.leaves(f(hidden, head)) for f in compiled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    whole_bytes, chunked_bytes = (f.memory_analysis().temp_size_in_bytes for f in compiled)
    assert chunked_bytes < 0.5 * whole_bytes
    assert chunked_bytes < 4 * length * vocab


def test_chunks_by_hand():
    chunked = lambda hidden, tokens: L.token_log_prob_chunked(hidden, tokens, lambda h: h + 3.0, chunk_size=1)
    check(chunked, np.log([0.25, 0.7]), LOGITS, TOKENS)


def test_chunk_size_must_divide():
    with pytest.raises(ValueError, match="chunk_size=3, length=4"):
        L.token_log_prob_chunked(jnp.ones((4, 2)), jnp.zeros(4, int), lambda h: h, chunk_size=3)


def test_reconstruction_by_hand():
    x, x_hat = [1.0, 0.0, 1.0], [4.0, 4.0, 1.0]
    check(L.reconstruction_error, 5.0, x, x_hat)
    check(L.reconstruction_error, 25.0, x, x_hat, kind="squared")
    bernoulli = -np.log(1 / (1 + np.exp(-4.0))) - np.log(1 - 1 / (1 + np.exp(-4.0))) + np.log1p(np.exp(-1.0))
    check(L.reconstruction_error, bernoulli, x, x_hat, kind="bernoulli")
    grad = jax.grad(L.reconstruction_error, 1)(jnp.asarray(x), jnp.asarray(x_hat))
    np.testing.assert_allclose(grad, [0.6, 0.8, 0.0], rtol=1e-6)
    with pytest.raises(ValueError, match="cosine"):
        L.reconstruction_error(jnp.ones(2), jnp.ones(2), kind="cosine")


def test_corruption():
    x = jnp.full(20_000, 3.0)
    masked = L.masking_noise(jax.random.key(1), x, rate=0.3)
    assert set(np.unique(masked)) == {0.0, 3.0}
    assert abs(float(jnp.mean(masked == 0)) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 20_000)
    noisy = L.gaussian_noise(jax.random.key(2), x, std=0.5) - x
    assert abs(float(noisy.mean())) < 4 * 0.5 / np.sqrt(20_000)
    assert abs(float(noisy.std()) - 0.5) < 4 * 0.5 / np.sqrt(40_000)
    for f, strength in ((L.masking_noise, {"rate": 0.0}), (L.gaussian_noise, {"std": 0.0})):
        np.testing.assert_array_equal(f(jax.random.key(3), x, **strength), x)
        check(
            lambda x, f=f, **s: f(jax.random.key(4), x, **s),
            f(jax.random.key(4), x, **strength),
            x,
            **strength,
        )
    assert L.masking_noise(jax.random.key(5), jnp.arange(3), rate=0.5).dtype == jnp.int32


def test_masked_mean_by_hand():
    check(L.masked_mean, 2.0, [1.0, 3.0, np.nan], [1.0, 1.0, 0.0])
    check(L.masked_mean, 1.5, [[1.0, 3.0]], [[3.0, 1.0]])
    check(L.masked_mean, 0.75, [0.5, 1.0], [0.25, 0.25])
    check(L.masked_mean, 0.0, [1.0, 3.0], [0.0, 0.0])
    check(L.masked_mean, 1.0, [1.0, 3.0], jnp.array([True, False]))


def test_whiten_numbers_of_the_released_code():
    x = [[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]]
    kept = np.array([[0.0508, 0.4381, 0.8254], [1.2127, 1.6, 1.9873], [2.3746, 2.7619, 3.1492]])
    check(L.whiten, kept, x, atol=1e-4, keep_mean=True)
    check(L.whiten, kept - 1.6, x, atol=1e-4)
    padded = np.pad(x, ((0, 0), (0, 2)), constant_values=np.inf)
    mask = np.pad(np.ones((3, 3)), ((0, 0), (0, 2)))
    check(L.whiten, np.pad(kept, ((0, 0), (0, 2))), padded, mask, atol=1e-4, keep_mean=True)
