"""Policy improvement by tree search on a model, known or learned: the lectures' last chapter.

The search is Gumbel AlphaZero's (Danihelka et al. 2022, "Policy improvement by planning with Gumbel"): few
simulations suffice, because actions are drawn without replacement and halved, and what it returns is a better
policy whenever the values are right. It plans from ONE state with arrays of a fixed size; the caller vmaps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.types import Numeric

VISIT_OFFSET, VALUE_SCALE = 50.0, 0.1
"""sigma(q) = (50 + max_b N(b)) 0.1 q, q brought to [0, 1] (Danihelka et al. 2022, section 5).

Values are scaled by the minimum and maximum of the whole tree, as in MuZero. Scaling per node, as mctx 0.0.71
does, blows a gap of 0.001 up to 1, and a network that underestimates would never try a second action.
"""


class Leaf(NamedTuple):
    """The state that an action leads to, as the model and the network estimate it."""

    reward: jax.Array
    """[] of the action."""
    discount: jax.Array
    """[] gamma, or 0 if the episode ends there; then neither the state nor what follows it is read."""
    state: Any
    """Whatever the model continues from; a pytree of arrays."""
    logits: jax.Array
    """[A] the network's policy there; -inf forbids an action."""
    value: jax.Array
    """[] the network's value there."""


Expand = Callable[[Any, jax.Array], Leaf]
"""`(state, action) -> Leaf`, one step of the model, judged by the network."""


class Plan(NamedTuple):
    """A search's recommendation for one state."""

    action: jax.Array
    """[] int32, to be played."""
    logits: jax.Array
    """[A] of the improved policy, to be learned from."""
    q: jax.Array
    """[A] values of the actions; those never tried have the state's."""
    visits: jax.Array
    """[A] int32 simulations through each action."""


class _Tree(NamedTuple):
    """N + 1 nodes, the root first; a node's number is the simulation that added it."""

    parent: jax.Array
    children: jax.Array
    """[N + 1, A], -1 where not yet expanded."""
    visits: jax.Array
    value: jax.Array
    """[N + 1] mean of the network's value and of the returns that were backed up."""
    leaf: Leaf


def halving(considered: int, simulations: int) -> np.ndarray:
    """Return sequential halving's schedule: how often an action must have been tried to be tried next.

    All considered actions are tried equally often, then the better half of them, and so on down to two, with
    about the same number of simulations for each round (Karnin, Koren & Somekh 2013).

    Args:
      considered: actions in the first round.
      simulations: N.

    Returns:
      [N] int32.
    """
    rounds = max(1, int(np.ceil(np.log2(considered))))
    tried, schedule = 0, list[int]()
    while len(schedule) < simulations:
        repeats = max(1, simulations // (rounds * considered))
        for _ in range(repeats):
            schedule += [tried] * considered
            tried += 1
        considered = max(min(2, considered), considered // 2)
    return np.array(schedule[:simulations], np.int32)


def search(
    key: chex.PRNGKey | None,
    root: Leaf,
    expand: Expand,
    *,
    simulations: int,
    considered: int | None = None,
) -> Plan:
    """Plan from ONE state with a deterministic model.

        improved policy = softmax(logits + sigma(q)),   q completed by the state's value where never tried

    Args:
      key: the Gumbel noise that draws the root's actions without replacement; None plays without chance, as
        in an evaluation.
      root: the state to plan from; its reward and discount are not read.
      expand: the model and the network.
      simulations: N, states that are added to the tree.
      considered: most actions drawn at the root; default all, or N if that is less. Forbidden ones are not
        drawn while another is allowed.

    Returns:
      A `Plan`.

    Raises:
      ValueError: if a count is below 1.
    """
    actions = root.logits.shape[-1]
    considered = min(actions, simulations) if considered is None else min(considered, actions)
    if simulations < 1 or considered < 1:
        raise ValueError(
            f"simulations and considered must be at least 1; got simulations={simulations}, "
            f"considered={considered}"
        )
    noise = (
        jnp.zeros(actions, jnp.float32) if key is None else jax.random.gumbel(key, (actions,), jnp.float32)
    )
    tree = _start(_as_float32(root), simulations)

    def simulate(tree: _Tree, step: tuple[jax.Array, jax.Array]) -> tuple[_Tree, None]:
        number, tried = step
        first = _choose_at_root(tree, noise, tried)
        node, action = _descend(tree, first)
        leaf = _as_float32(expand(jax.tree.map(lambda x: x[node], tree.leaf.state), action))
        leaf = _cut(leaf, (node > 0) & (tree.leaf.discount[node] == 0.0))
        return _back_up(_add(tree, number, node, action, leaf), number), None

    # One schedule for each number of allowed actions, none of which would try a forbidden one.
    schedules = np.stack([halving(count, simulations) for count in range(1, considered + 1)])
    allowed = jnp.sum(root.logits > -jnp.inf, dtype=jnp.int32)
    schedule = jnp.asarray(schedules)[jnp.clip(allowed, 1, considered) - 1]
    tree, _ = jax.lax.scan(simulate, tree, (jnp.arange(1, simulations + 1, dtype=jnp.int32), schedule))
    visits, q, improved = _improved(tree, 0)
    best = jnp.where(visits == jnp.max(visits), noise + improved, -jnp.inf)
    return Plan(jnp.argmax(best).astype(jnp.int32), improved, q, visits)


def _as_float32(leaf: Leaf) -> Leaf:
    *numbers, state = leaf.reward, leaf.discount, leaf.logits, leaf.value, leaf.state
    reward, discount, logits, value = (jnp.asarray(x, jnp.float32) for x in numbers)
    return Leaf(reward, discount, state, logits, value)


def _cut(leaf: Leaf, behind: jax.Array) -> Leaf:
    """Return a leaf with zeros for all that lies behind an end, where a model may return anything.

    Args:
      leaf: new.
      behind: [] whether the episode ended before its action; then the action's reward is nothing either.
    """
    zero = lambda x, where: jnp.where(where, jnp.zeros_like(x), x)
    discount = zero(leaf.discount, behind)
    ended = discount == 0.0
    return Leaf(
        zero(leaf.reward, behind), discount, leaf.state, zero(leaf.logits, ended), zero(leaf.value, ended)
    )


def _start(root: Leaf, simulations: int) -> _Tree:
    places = simulations + 1
    room = lambda x: jnp.zeros((places, *jnp.shape(x)), jnp.result_type(x)).at[0].set(x)
    unknown = jnp.full((places, root.logits.shape[-1]), -1, jnp.int32)
    leaf = jax.tree.map(room, root)
    return _Tree(unknown[:, 0], unknown, jnp.zeros(places, jnp.int32).at[0].set(1), leaf.value, leaf)


def _children(tree: _Tree, node: Numeric) -> tuple[jax.Array, jax.Array]:
    """Return how often each action of a node was tried [A], and its completed value [A]."""
    child = tree.children[node]
    tried = child >= 0
    visits = jnp.where(tried, tree.visits[child], 0)
    q = tree.leaf.reward[child] + tree.leaf.discount[child] * tree.value[child]
    # The state's value where nothing was tried: the network's, and what the tried actions were worth under
    # its policy, by the number of simulations. The tried actions' weights sum to 1 however unlikely they are.
    logits = jnp.maximum(tree.leaf.logits[node], jnp.finfo(jnp.float32).min)
    weight = jnp.where(tried, jax.nn.softmax(jnp.where(tried, logits, -jnp.inf)), 0.0)
    seen = jnp.sum(weight * jnp.where(tried, q, 0.0))
    total = jnp.sum(visits, dtype=jnp.int32)
    mixed = (tree.leaf.value[node] + total * seen) / (1 + total)
    return visits, jnp.where(tried, q, mixed)


def _improved(tree: _Tree, node: Numeric) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return a node's visits [A], completed values [A] and the improved policy's logits [A]."""
    visits, q = _children(tree, node)
    arrived = tree.leaf.reward + tree.leaf.discount * tree.value
    # A place that is still empty, one behind an end, and the root, into which no action leads, say what the
    # root is worth.
    behind = (tree.parent > 0) & (tree.leaf.discount[tree.parent] == 0.0)
    known = jnp.where((tree.parent >= 0) & ~behind, arrived, tree.value[0])
    low, high = jnp.min(known), jnp.max(known)
    scaled = (q - low) / jnp.maximum(high - low, 1e-8)
    sigma = (VISIT_OFFSET + jnp.max(visits)) * VALUE_SCALE * scaled
    return visits, q, tree.leaf.logits[node] + sigma


def _choose_at_root(tree: _Tree, noise: jax.Array, tried: jax.Array) -> jax.Array:
    visits, _, logits = _improved(tree, 0)
    return jnp.argmax(jnp.where(visits == tried, noise + logits, -jnp.inf)).astype(jnp.int32)


def _choose_below(tree: _Tree, node: jax.Array) -> jax.Array:
    """Return the action that brings the visits nearest to the improved policy; no noise, no constants."""
    visits, _, logits = _improved(tree, node)
    return jnp.argmax(jax.nn.softmax(logits) - visits / (1 + jnp.sum(visits))).astype(jnp.int32)


def _descend(tree: _Tree, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the node and its action from which the tree grows."""

    def deeper(at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        child = tree.children[at]
        return child, _choose_below(tree, child)

    return jax.lax.while_loop(lambda at: tree.children[at] >= 0, deeper, (jnp.zeros_like(first), first))


def _add(tree: _Tree, number: jax.Array, node: jax.Array, action: jax.Array, leaf: Leaf) -> _Tree:
    return _Tree(
        tree.parent.at[number].set(node),
        tree.children.at[node, action].set(number),
        tree.visits.at[number].set(1),
        tree.value.at[number].set(leaf.value),
        jax.tree.map(lambda all_, new: all_.at[number].set(new), tree.leaf, leaf),
    )


def _back_up(tree: _Tree, number: jax.Array) -> _Tree:
    """Propagate the new leaf's value to all of its ancestors."""

    # Only what changes is carried: under vmap a loop selects its whole carry in every round.
    def up(carry: tuple) -> tuple:
        node, worth, visits, value = carry
        worth = tree.leaf.reward[node] + tree.leaf.discount[node] * worth
        node = tree.parent[node]
        visits = visits.at[node].add(1)
        return node, worth, visits, value.at[node].add((worth - value[node]) / visits[node])

    carry = (number, tree.value[number], tree.visits, tree.value)
    _, _, visits, value = jax.lax.while_loop(lambda carry: carry[0] > 0, up, carry)
    return tree._replace(visits=visits, value=value)
