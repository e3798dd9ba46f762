"""Preference losses by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import losses as L

from .checks import check

LOG = np.log


def nls(x):
    """-log sigma(x)."""
    return np.logaddexp(0.0, -np.asarray(x))


def test_bradley_terry_by_hand():
    check(L.bradley_terry, [LOG(2), nls(2.0)], [1.0, 3.0], [1.0, 1.0])
    check(L.bradley_terry, nls(1.5), 3.0, 1.0, margin=0.5)
    check(L.bradley_terry, 0.9 * nls(2.0) + 0.1 * nls(-2.0), 3.0, 1.0, label_smoothing=0.1)
    check(L.bradley_terry, nls([1.5, 1.0]), [3.0, 3.0], [1.0, 1.0], margin=jnp.array([0.5, 1.0]))


def test_bradley_terry_recovers_scores_and_ignores_shifts():
    """With the comparisons' true frequencies as weights, its minimum is the true scores up to a constant."""
    true = jnp.array([0.0, 1.0, -0.5])
    i, j = jnp.where(~jnp.eye(3, dtype=bool), size=6)
    weight = jax.nn.sigmoid(true[i] - true[j])
    loss = lambda s: jnp.sum(weight * L.bradley_terry(s[i], s[j]))
    np.testing.assert_allclose(jax.grad(loss)(true + 4.0), 0.0, atol=1e-6)
    np.testing.assert_allclose(loss(true), loss(true + 4.0), rtol=1e-6)
    assert loss(true) < loss(true * 1.1) and loss(true) < loss(true * 0.9)


def test_plackett_luce_by_hand():
    scores = np.array([2.0, 0.5, 1.0])
    expected = -np.log(np.exp(2) / np.exp(scores).sum()) - np.log(np.exp(0.5) / np.exp(scores[1:]).sum())
    check(L.plackett_luce, expected, scores)
    padded = [2.0, 9.0, 0.5, 1.0, -7.0], jnp.arange(5), [1.0, 0.0, 1.0, 1.0, 0.0]
    check(L.plackett_luce, expected, *padded)


def test_plackett_luce_draws_ties_together():
    """Two firsts, each drawn among all, then the last, who has no choice; their order does not count."""
    scores = np.array([2.0, 0.5, 1.0])
    expected = 2 * np.log(np.exp(scores).sum()) - 2.0 - 1.0
    check(L.plackett_luce, expected, scores, jnp.array([1, 3, 1]))
    check(L.plackett_luce, expected, scores[[2, 1, 0]], jnp.array([1, 2, 1]))
    tied = jax.grad(lambda s: L.plackett_luce(s, jnp.array([1, 1])))
    np.testing.assert_allclose(tied(jnp.array([1.0, 0.0])), np.array([1, -1]) * np.tanh(0.5), rtol=1e-6)
    np.testing.assert_allclose(tied(jnp.array([0.3, 0.3])), 0.0, atol=1e-6)


def test_plackett_luce_is_a_distribution_over_rankings():
    from itertools import permutations

    scores = jnp.array([1.0, -0.5, 0.3, 2.0])
    total = sum(np.exp(-L.plackett_luce(scores[jnp.array(order)])) for order in permutations(range(4)))
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_all_pairs_by_hand():
    check(L.all_pairs, np.mean(nls([1.5, 1.0, -0.5])), [2.0, 0.5, 1.0])
    ranks = jnp.array([2, 1, 2])
    check(L.all_pairs, np.mean(nls([-1.5, -0.5])), [2.0, 0.5, 1.0], ranks)
    padded = [2.0, 0.5, np.inf], jnp.array([0, 1, 2]), [1.0, 1.0, 0.0]
    check(L.all_pairs, nls(1.5), *padded)
    check(L.all_pairs, 0.0, [2.0, 0.5], jnp.array([1, 1]))


def test_ratings_labels_and_centring_by_hand():
    check(L.score_regression, [2.0, 0.0], [3.0, 1.0], [1.0, 1.0])
    check(L.binary_label, [nls(2.0), nls(-2.0)], [2.0, 2.0], [1.0, 0.0])
    check(L.binary_label, [nls(2.0), nls(-2.0)], [2.0, 2.0], jnp.array([True, False]))
    check(L.reward_centring, [16.0], [3.0], [1.0])


def test_direct_losses_by_hand():
    logps = [-1.0], [-3.0], [-2.0], [-2.5]  # h_w = 1, h_l = -0.5
    check(L.dpo, nls([0.15]), *logps, beta=0.1)
    check(L.dpo, 0.8 * nls([0.15]) + 0.2 * nls([-0.15]), *logps, beta=0.1, label_smoothing=0.2)
    check(L.ipo, [(1.5 - 5.0) ** 2], *logps, beta=0.1)
    sigma = lambda x: 1 / (1 + np.exp(-x))
    kto = {"beta": 0.5, "desirable_weight": 2.0, "undesirable_weight": 3.0}
    check(
        L.kto, [2 * (1 - sigma(0.4)), 3 * (1 - sigma(-0.4))], [-1.0] * 2, [-2.0] * 2, [1, 0], [0.2] * 2, **kto
    )
    odds = LOG(0.5 / 0.5) - LOG(0.2 / 0.8)
    check(L.orpo, [-LOG(0.5) + 0.1 * nls(odds)], LOG([0.5]), LOG([0.2]), beta=0.1)
    check(L.log_odds_ratio, [odds], LOG([0.5]), LOG([0.2]))
    check(L.simpo, nls([2.0 * 2.0 - 0.5]), [-1.0], [-3.0], beta=2.0, margin=0.5)
    slic = {"delta": 1.0, "target_weight": 0.1}
    check(L.slic, [0.05, 1.75], [-1.0, -3.0], [-3.0, -2.7], [-0.5, -4.5], rtol=1e-5, **slic)


def test_dpo_gradient_weighs_wrong_pairs_more_and_stops_the_reference():
    loss = lambda x: L.dpo(*x, beta=1.0)
    wrong = jax.grad(loss)((-3.0, -1.0, -2.0, -2.0))
    right = jax.grad(loss)((-1.0, -3.0, -2.0, -2.0))
    assert abs(wrong[0]) > abs(right[0]) > 0
    assert wrong[2] == wrong[3] == 0


def test_shapes_are_refused():
    with pytest.raises(AssertionError):
        L.dpo(jnp.ones(2), jnp.ones(2), jnp.ones(2), jnp.ones(1), beta=0.1)
    with pytest.raises(AssertionError):
        L.plackett_luce(jnp.ones((2, 2)))
