"""The least time that this machine needs for a language model's work: its own rates at the work's shapes."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_align.nets.transformer import TransformerConfig

FLOAT = 4
"""Bytes of a number."""


class Work(NamedTuple):
    """What must be done at least, one phase after the other."""

    flops: tuple[float, ...]
    """Multiplications and additions of each phase."""
    rows: tuple[int, ...]
    """The rows that its products with the weights have."""
    moved: tuple[float, ...]
    """Bytes that must be read or written."""


def count_weights(shape: TransformerConfig) -> int:
    """Return how many numbers a token is multiplied with: the linear layers' and the logits' matrices."""
    attention = 2 * shape.width * shape.depth * (shape.heads + shape.kv_heads)
    products = {"gelu": 2, "none": 0}.get(shape.feed_forward, 3)
    layer = attention + products * shape.width * shape.hidden
    return shape.layers * layer + shape.vocab_size * shape.width


def count_cached(shape: TransformerConfig, slots: float) -> float:
    """Return how many numbers one row's keys and values are."""
    return 2.0 * shape.layers * shape.kv_heads * shape.depth * slots


def token_flops(shape: TransformerConfig, slots: float) -> float:
    """Return the multiplications and additions of one token that reads `slots` slots, its logits included."""
    return 2.0 * count_weights(shape) + 4.0 * shape.heads * shape.depth * slots * shape.layers


def generation_work(shape: TransformerConfig, batch: int, prompt: int, new: int) -> Work:
    """Return the work of `batch` responses: the prompt read once, then one token at a time."""
    steps = new - 1
    mean_slots = prompt + (steps + 1) / 2
    # Of a prompt only the last token's logits are needed.
    reading = (
        prompt * token_flops(shape, (prompt + 1) / 2) - 2.0 * (prompt - 1) * shape.vocab_size * shape.width
    )
    weights = FLOAT * count_weights(shape)
    return Work(
        (batch * reading, batch * steps * token_flops(shape, mean_slots)),
        (batch * prompt, batch),
        (weights, steps * (weights + FLOAT * batch * count_cached(shape, mean_slots))),
    )


def training_work(shape: TransformerConfig, batch: int, length: int) -> Work:
    """Return the work of a step: a backward pass takes twice a forward pass."""
    tokens = batch * (length - 1)
    flops = 3 * tokens * token_flops(shape, length / 2)
    # Read in both passes, and once more by Adam, which writes them; as do the gradient and two moments.
    return Work((flops,), (tokens,), (10.0 * FLOAT * count_weights(shape),))


def best_rate(call: Callable[[], Any], amount: float) -> float:
    """Return the highest of 15 rates."""
    seconds = []
    for _ in range(16):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - begin)
    return amount / min(seconds[1:])


def matrix_rate(shape: TransformerConfig, rows: int) -> float:
    """Return float32 operations a second of `[rows, width] [width, hidden] [hidden, width]`, repeated.

    The two matrices stay in the processor's caches: what it costs to fetch a model's is counted in bytes.
    """
    width, hidden = shape.width, shape.hidden
    count = max(4, 2**13 // rows)
    up, down, x = jnp.eye(width, hidden), jnp.eye(hidden, width), jnp.ones((rows, width))
    chain = jax.jit(lambda x, u, d: jax.lax.fori_loop(0, count, lambda _, y: (y @ u) @ d, x))
    return best_rate(lambda: chain(x, up, down), count * rows * 4.0 * width * hidden)


def memory_rate(num_bytes: float) -> float:
    """Return bytes a second at which an array of this size is read and summed."""
    x = jnp.ones(int(num_bytes) // 4)
    count = max(2, int(1e8 / num_bytes))
    # Each pass needs the one before, so that none can be left out.
    read = jax.jit(lambda x: jax.lax.fori_loop(0, count, lambda _, y: jnp.sum(x * (1 + 1e-9 * y)), x[0]))
    return best_rate(lambda: read(x), 1.0 * count * x.nbytes)


def floor(shape: TransformerConfig, work: Work, resident: float) -> float:
    """Print what each phase takes at least, `resident` bytes in use; return the seconds together."""
    bandwidth, total = memory_rate(resident), 0.0
    for flops, rows, moved in zip(*work, strict=True):
        rate = matrix_rate(shape, rows)
        total += max(flops / rate, moved / bandwidth)
        print(f"  {flops / 1e9:.3f} GFLOP in {rows} rows at {rate / 1e9:.0f} a second:", end=" ")
        print(f"{1e3 * flops / rate:.2f} ms; {moved / 1e6:.1f} MB at {bandwidth / 1e9:.1f} GB/s:", end=" ")
        print(f"{1e3 * moved / bandwidth:.2f} ms")
    return total
