"""Experience replay on the device: the N most recent transitions, drawn uniformly or by priority.

A replay is four pure functions over an explicit state; all of them jit, vmap over seeds and scan. Rows are
time steps and columns are environments, so that an n-step window is n rows of one column, and no window
reaches across the write head (Lin 1992; Mnih et al. 2015; Schaul et al. 2016, arXiv:1511.05952).

Priorities are kept in a tree of sums with 16 children a node: a draw walks down its five levels (2^20
leaves; more levels beyond), a change walks up, so both cost O(log N), the same from 10 thousand to a million.
Sums are recomputed from their children, never adjusted by differences, and the walk enters no child of weight
0, so that rounding neither accumulates nor draws an item that must not be drawn.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.losses import discounted_returns
from jaxrl_align.types import Numeric, Transition

WIDTH = 16
MIN_DEPTH = 5
PRIORITY_FLOOR = 1e-6
"""Added to |error|, so that a transition learnt perfectly is drawn again some day (Schaul 2016, 3.3)."""

MAX_PRIORITY = 1e30
"""Priorities from here on count as unknown, since a sum of them would be infinite in float32."""


class ReplayState(NamedTuple):
    """A replay's contents."""

    data: Transition
    """Leaves [N, ...]; row-major, N = rows * lanes."""
    head: jax.Array
    """[] int32, the row that is written next."""
    filled: jax.Array
    """[] int32, rows written so far, at most `rows`."""
    sums: tuple[jax.Array, ...]
    """The sum tree, leaves first, each level [nodes, 16]; empty without priorities."""
    largest: jax.Array
    """[] the largest priority p^alpha so far; new transitions get it, so that each is replayed early."""


class Sample(NamedTuple):
    """A minibatch of n-step transitions, leaves [batch, ...]."""

    obs: Any
    action: jax.Array
    reward: jax.Array
    """Discounted sum over the window, which ends with the episode."""
    discount: jax.Array
    """gamma^m for a window of m steps; 0 where it ended in a termination."""
    next_obs: Any
    """After the window's last step, before any reset."""
    index: jax.Array  # type: ignore[assignment]
    """int32 position of the first step, for `update`."""
    weight: jax.Array
    """Importance weight `(N P(i))^-beta`, largest of the batch 1; all 1 without priorities."""


class Replay(NamedTuple):
    """A memory of transitions."""

    init: Callable[[Any], ReplayState]
    """`example -> state`: empty; the example is one transition, of arrays or of shapes."""
    add: Callable[[ReplayState, Transition], ReplayState]
    """`(state, Transition[lanes, T]) -> state`: the oldest T rows give way."""
    sample: Callable[..., Sample]
    """`(state, key, gamma, beta) -> Sample`; at least n_step rows must have been added."""
    update: Callable[..., ReplayState]
    """`(state, index, error, alpha) -> state`: priority |error| + 1e-6 to the power alpha, or the largest so
    far where an error is not finite; without priorities the state comes back as it was."""


def replay_bytes(example: Any, capacity: int, *, prioritised: bool = False) -> int:
    """Return how many bytes a replay of `capacity` transitions will take, before any is allocated.

    Args:
      example: one transition, of arrays or of `jax.ShapeDtypeStruct`.
      capacity: N.
      prioritised: whether a sum tree is kept as well.
    """
    per_item = sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(example))
    tree = sum(4 * WIDTH * nodes for nodes in _tree_shape(capacity)) if prioritised else 0
    return capacity * per_item + tree + 12


def make_replay(
    capacity: int, batch_size: int, *, lanes: int = 1, n_step: int = 1, prioritised: bool = False
) -> Replay:
    """Build a replay memory.

    Args:
      capacity: N transitions; a multiple of `lanes`.
      batch_size: transitions a draw.
      lanes: environments that write side by side.
      n_step: steps a sampled transition spans, fewer where its episode ends.
      prioritised: draw i with probability p_i^alpha / sum p^alpha instead of uniformly, one from each of
        `batch_size` equal slices of the total.

    Raises:
      ValueError: if a count is below 1, capacity is below the batch or no multiple of lanes, or `n_step`
        exceeds the rows.
    """
    _check_sizes(capacity, batch_size, lanes, n_step)
    rows = capacity // lanes

    def init(example: Any) -> ReplayState:
        data = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), example)
        levels = _tree_shape(capacity) if prioritised else ()
        sums = tuple(jnp.zeros((nodes, WIDTH), jnp.float32) for nodes in levels)
        # Two buffers, though both hold 0: a caller may donate the state, and no buffer is donated twice.
        head, filled = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return ReplayState(data, head, filled, sums, jnp.ones((), jnp.float32))

    def add(state: ReplayState, batch: Transition) -> ReplayState:
        chex.assert_shape(batch.reward, (lanes, None))
        steps = batch.reward.shape[1]
        if rows % steps:
            raise ValueError(
                f"the rows of the replay (capacity / lanes) must be a multiple of the steps added at once; "
                f"got {rows} rows, {steps} steps; try capacity={-(-rows // steps) * steps * lanes}"
            )
        write = lambda x, new: jax.lax.dynamic_update_slice_in_dim(
            x, new.astype(x.dtype), state.head * lanes, 0
        )
        data = jax.tree.map(write, state.data, time_first(batch))
        sums = _admit(state, steps) if prioritised else ()
        filled = jnp.minimum(state.filled + steps, rows)
        return ReplayState(data, (state.head + steps) % rows, filled, sums, state.largest)

    def _admit(state: ReplayState, steps: int) -> tuple[jax.Array, ...]:
        # A step may start a window once the n - 1 steps after it are known.
        offset = jnp.arange(1 - n_step, steps)
        ready = (offset <= steps - n_step) & (offset >= jnp.maximum(-state.filled, steps - rows))
        row = (state.head + offset) % rows
        index = row[:, None] * lanes + jnp.arange(lanes)[None, :]
        weight = jnp.where(ready, state.largest, 0.0)
        return _tree_set(state.sums, index.ravel(), jnp.repeat(weight, lanes))

    def sample(state: ReplayState, key: chex.PRNGKey, gamma: Numeric, beta: Numeric) -> Sample:
        starts = (state.filled - (n_step - 1)) * lanes
        if prioritised:
            index, probability = _tree_sample(state.sums, key, batch_size)
            weight = (jnp.maximum(starts, 1) * probability) ** -beta
            weight = weight / jnp.max(weight)
        else:
            oldest = (state.head - state.filled) * lanes
            index = (oldest + _randint(key, batch_size, starts)) % capacity
            weight = jnp.ones(batch_size, jnp.float32)
        window = (index[:, None] + lanes * jnp.arange(n_step)[None, :]) % capacity
        return _read(state.data, index, window, gamma, weight)

    def update(state: ReplayState, index: jax.Array, error: jax.Array, alpha: Numeric) -> ReplayState:
        if not prioritised:
            return state
        weight = _priority(error, alpha, state.largest)
        largest = jnp.maximum(state.largest, jnp.max(weight))
        return state._replace(sums=_tree_set(state.sums, index, weight), largest=largest)

    return Replay(init, add, sample, update)


def _priority(error: jax.Array, alpha: Numeric, largest: jax.Array) -> jax.Array:
    weight = ((jnp.abs(error) + PRIORITY_FLOOR) ** alpha).astype(largest.dtype)
    # One nan or infinity would spoil every sum above it; what is unknown is drawn like what is new.
    return jnp.where(weight < MAX_PRIORITY, weight, largest)


def _read(data: Transition, index: jax.Array, window: jax.Array, gamma: Numeric, weight: jax.Array) -> Sample:
    """Return the n-step transitions that start at `index` [batch] and span `window` [batch, n]."""
    reward, terminated, truncated = (_take(x, window) for x in (data.reward, data.terminated, data.truncated))
    done = terminated | truncated
    last = jnp.where(jnp.any(done, 1), jnp.argmax(done, 1), window.shape[1] - 1)
    pick = lambda x: jnp.take_along_axis(x, last[:, None], 1)[:, 0]
    discount = gamma * (1.0 - done)
    return Sample(
        obs=jax.tree.map(lambda x: _take(x, index), data.obs),
        action=_take(data.action, index),
        reward=jax.vmap(discounted_returns)(reward, discount)[:, 0],
        discount=jnp.asarray(gamma) ** (last + 1) * (1.0 - pick(terminated)),
        next_obs=jax.tree.map(lambda x: _take(x, pick(window)), data.next_obs),
        index=index,
        weight=weight,
    )


def time_first(experience: Any) -> Any:
    """Flatten experience [B, T, ...] to [T * B, ...]: all environments' first steps, then their second."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), experience)


def _check_sizes(capacity: int, batch_size: int, lanes: int, n_step: int) -> None:
    for name, value in {"batch_size": batch_size, "lanes": lanes, "n_step": n_step}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {name}={value}")
    if capacity < batch_size:
        raise ValueError(
            f"capacity must be at least batch_size; got capacity={capacity}, batch_size={batch_size}; "
            f"enlarge the replay or draw smaller batches"
        )
    if capacity % lanes:
        raise ValueError(
            f"capacity must be a multiple of lanes (the environments side by side); got capacity={capacity}, "
            f"lanes={lanes}; try capacity={-(-capacity // lanes) * lanes}"
        )
    if n_step > capacity // lanes:
        raise ValueError(
            f"n_step must be at most the rows of the replay; got n_step={n_step}, capacity / lanes = "
            f"{capacity // lanes}; enlarge the replay or shorten the window"
        )


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    return x.at[index].get(mode="promise_in_bounds")


def _randint(key: chex.PRNGKey, count: int, bound: jax.Array) -> jax.Array:
    # floor(bits * bound / 2^32) in 16-bit limbs: exact to 2^-32, where jax.random.randint divides twice.
    bits = jax.random.bits(key, (count,), jnp.uint32)
    bound = bound.astype(jnp.uint32)
    high, low, bound_high, bound_low = bits >> 16, bits & 0xFFFF, bound >> 16, bound & 0xFFFF
    left, right = high * bound_low, low * bound_high
    carry = ((low * bound_low >> 16) + (left & 0xFFFF) + (right & 0xFFFF)) >> 16
    return (high * bound_high + (left >> 16) + (right >> 16) + carry).astype(jnp.int32)


def _tree_shape(capacity: int) -> list[int]:
    """Return each level's number of nodes, leaves first, down to a single root."""
    nodes, levels = capacity, list[int]()
    while nodes > 1 or len(levels) < MIN_DEPTH:
        nodes = -(-nodes // WIDTH)
        levels.append(nodes)
    return levels


def _tree_set(sums: tuple[jax.Array, ...], index: jax.Array, weight: jax.Array) -> tuple[jax.Array, ...]:
    levels = []
    for level in sums:
        node = index // WIDTH
        level = level.at[node, index % WIDTH].set(weight, mode="promise_in_bounds")
        levels.append(level)
        index, weight = node, jnp.sum(_take(level, node), axis=1)
    return tuple(levels)


def _tree_sample(sums: tuple[jax.Array, ...], key: chex.PRNGKey, count: int) -> tuple[jax.Array, jax.Array]:
    """Draw one leaf from each of `count` equal slices of the total; return [count] leaves, probabilities."""
    total = jnp.sum(sums[-1])
    rest = (jnp.arange(count) + jax.random.uniform(key, (count,))) * (total / count)
    node = jnp.zeros(count, jnp.int32)
    for level in reversed(sums):
        row = _take(level, node)
        ends = jnp.matmul(row, jnp.triu(jnp.ones((WIDTH, WIDTH), row.dtype)), precision="highest")
        # Rounding may carry `rest` beyond the last child: it stays just below the end of the heaviest prefix.
        rest = jnp.minimum(rest, jnp.max(jnp.where(row > 0, ends, 0.0), axis=1) * (1.0 - 1e-6))
        child = jnp.argmax((row > 0) & (ends > rest[:, None]), axis=1).astype(jnp.int32)
        weight = jnp.take_along_axis(row, child[:, None], 1)[:, 0]
        rest = jnp.maximum(rest - (jnp.take_along_axis(ends, child[:, None], 1)[:, 0] - weight), 0.0)
        node = node * WIDTH + child
    return node, weight / total
