"""Attention's own reverse derivative, beside the one that JAX takes of the formula in plain words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.nets.attention import Cache, attend_all

LENGTH, HEADS, KV_HEADS, DEPTH, SLOTS, VIRTUAL = 5, 6, 3, 4, 7, 2
SCALE = 0.3
KEYS = jax.random.split(jax.random.key(0), 6)
QUERY, GRAD = (jax.random.normal(key, (2, LENGTH, HEADS, DEPTH)) for key in KEYS[:2])
OWN = Cache(*jax.random.normal(KEYS[2], (2, 2, KV_HEADS, LENGTH, DEPTH)))
CACHE = Cache(*jax.random.normal(KEYS[3], (2, 2, KV_HEADS, SLOTS, DEPTH)))
PREFIX = Cache(*jax.random.normal(KEYS[4], (2, KV_HEADS, VIRTUAL, DEPTH)))
"""That all rows share."""
SEES = jax.random.bernoulli(KEYS[5], 0.6, (LENGTH, SLOTS)).at[0].set(False)
CAUSAL, ALL = jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), jnp.ones((LENGTH, VIRTUAL), bool)


def in_plain_words(query, places, scale):
    """Softmax over all places' slots of each query and head, masked ones left out, one at a time."""
    group = HEADS // KV_HEADS
    rows = []
    for t in range(LENGTH):
        heads = []
        for head in range(HEADS):
            keys, values, seen = (
                jnp.concatenate([part(read, attend) for read, attend in places])
                for part in (
                    lambda read, attend, head=head: read.key[head // group],
                    lambda read, attend, head=head: read.value[head // group],
                    lambda read, attend, t=t: attend[t],
                )
            )
            weight = jnp.where(seen, jnp.exp(scale * keys @ query[t, head]), 0.0)
            heads.append(weight @ values / jnp.sum(weight))
        rows.append(jnp.stack(heads))
    return jnp.stack(rows)


def value_and_gradients(attend):
    def loss(query, own, cache, prefix):
        row = lambda query, own, cache: attend(query, [(prefix, ALL), (cache, SEES), (own, CAUSAL)], SCALE)
        return jnp.sum(GRAD * jax.vmap(row)(query, own, cache))

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(QUERY, OWN, CACHE, PREFIX)


def test_it_is_the_derivative_of_the_formula_in_every_place_and_of_a_prefix_that_rows_share():
    for got, wanted in zip(
        *(jax.tree.leaves(value_and_gradients(f)) for f in (attend_all, in_plain_words)), strict=True
    ):
        assert np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_scores_far_apart_leave_no_nan():
    """Of 1e4 times the queries the likeliest slot takes all, and nothing moves."""
    loss = lambda query: jnp.sum(
        GRAD[0] * attend_all(query, [(Cache(*(x[0] for x in OWN[:2])), CAUSAL)], 1.0)
    )
    value, grad = jax.value_and_grad(loss)(1e4 * QUERY[0])
    assert np.isfinite(value) and np.isfinite(grad).all() and np.abs(grad[1:]).max() < 1.0


def test_a_gradient_may_be_differentiated_forwards_and_attention_itself_not():
    loss = lambda query: jnp.sum(attend_all(query, [(Cache(*(x[0] for x in OWN[:2])), CAUSAL)], SCALE) ** 2)
    tangent, step = GRAD[0], 1e-2
    _, product = jax.jvp(jax.grad(loss), (QUERY[0],), (tangent,))
    ends = [jax.grad(loss)(QUERY[0] + sign * step * tangent) for sign in (1, -1)]
    np.testing.assert_allclose(product, (ends[0] - ends[1]) / (2 * step), atol=2e-3)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss, (QUERY[0],), (tangent,))
