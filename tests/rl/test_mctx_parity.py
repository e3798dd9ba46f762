"""The whole search against DeepMind's mctx, on random models with ends and forbidden actions.

Run with the extra `mctx`. One thing differs by intent (see `tree_search.VALUE_SCALE`): mctx scales values per
node, we by the whole tree. So mctx gets our scale as its `qtransform`, and all else must agree.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.rl.tree_search import VALUE_SCALE, VISIT_OFFSET, Leaf, search

mctx = pytest.importorskip("mctx", reason="needs jaxrl-align[mctx]")

STATES, A, SIMULATIONS, ROWS = 30, 5, 24, 40


def scaled_by_the_whole_tree(tree, node):
    """Return mctx's completed values under our scale, by all that was reached before an end."""
    visits = tree.children_visits[node]
    prior = jax.nn.softmax(tree.children_prior_logits[node])
    q = tree.qvalues(node)
    seen = visits > 0
    weight = jnp.where(seen, jnp.maximum(prior, 1e-37), 0.0)
    mixed = jnp.sum(weight * jnp.where(seen, q, 0.0)) / jnp.maximum(jnp.sum(weight), 1e-37)
    total = jnp.sum(visits)
    mixed = (tree.raw_values[node] + total * mixed) / (1 + total)
    completed = jnp.where(seen, q, mixed)
    places = jnp.arange(tree.parents.shape[0])
    parent, action = tree.parents, tree.action_from_parent
    arrived = (
        tree.children_rewards[parent, action] + tree.children_discounts[parent, action] * tree.node_values
    )
    grand = parent[parent]
    behind = (parent > 0) & (tree.children_discounts[grand, action[parent]] == 0.0)
    inner = (places > 0) & (parent >= 0) & (tree.node_visits > 0) & ~behind
    known = jnp.where(inner, arrived, tree.node_values[0])
    low, high = known.min(), known.max()
    scaled = (completed - low) / jnp.maximum(high - low, 1e-8)
    return (VISIT_OFFSET + jnp.max(visits)) * VALUE_SCALE * scaled


def random_model(rng):
    """Draw [S, A] next states, rewards and discounts, and a network [S, A] and [S]."""
    return {
        "after": rng.integers(0, STATES, (STATES, A)),
        "reward": rng.normal(size=(STATES, A)).astype(np.float32),
        "discount": np.where(rng.random((STATES, A)) < 0.2, 0.0, 0.9).astype(np.float32),
        "logits": (2 * rng.normal(size=(STATES, A))).astype(np.float32),
        "value": rng.normal(size=STATES).astype(np.float32),
    }


@pytest.mark.parametrize("considered", [2, 5])
def test_a_search_is_mctxs_search(considered):
    model = jax.tree.map(jnp.asarray, random_model(np.random.default_rng(0)))
    rng = np.random.default_rng(1)
    forbidden = jnp.asarray((rng.random((ROWS, A)) < 0.5) & (np.arange(A) != rng.integers(0, A, (ROWS, 1))))
    roots = jnp.arange(ROWS) % STATES

    def recurrent(params, key, action, state):
        # What lies behind an end must not matter: mctx reads it, so there it is nothing.
        alive = state >= 0
        at = jnp.maximum(state, 0)
        discount = jnp.where(alive, model["discount"][at, action], 0.0)
        after = jnp.where(discount > 0, model["after"][at, action], -1)
        there = jnp.maximum(after, 0)
        logits = jnp.where((after >= 0)[:, None], model["logits"][there], 0.0)
        value = jnp.where(after >= 0, model["value"][there], 0.0)
        reward = jnp.where(alive, model["reward"][at, action], 0.0)
        return mctx.RecurrentFnOutput(
            reward=reward, discount=discount, prior_logits=logits, value=value
        ), after

    theirs = mctx.gumbel_muzero_policy(
        None,
        jax.random.key(0),
        mctx.RootFnOutput(prior_logits=model["logits"][roots], value=model["value"][roots], embedding=roots),
        recurrent,
        SIMULATIONS,
        invalid_actions=forbidden,
        qtransform=scaled_by_the_whole_tree,
        max_num_considered_actions=considered,
        gumbel_scale=0.0,
    )

    def expand(state, action):
        after = model["after"][state, action]
        reward, discount = model["reward"][state, action], model["discount"][state, action]
        return Leaf(reward, discount, after, model["logits"][after], model["value"][after])

    def ours(state, forbidden):
        logits = jnp.where(forbidden, -jnp.inf, model["logits"][state])
        root = Leaf(0.0, 1.0, state, logits, model["value"][state])
        return search(None, root, expand, simulations=SIMULATIONS, considered=considered)

    plans = jax.jit(jax.vmap(ours))(roots, forbidden)
    summary = theirs.search_tree.summary()
    np.testing.assert_array_equal(plans.visits, summary.visit_counts)
    np.testing.assert_array_equal(plans.action, theirs.action)
    tried = plans.visits > 0
    np.testing.assert_allclose(jnp.where(tried, plans.q - summary.qvalues, 0.0), 0.0, atol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(plans.logits), theirs.action_weights, atol=1e-5)
