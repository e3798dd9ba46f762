"""Kernels in 4 or 8 bits: blocks of 64 weights share one scale, and a linear layer reads through them.

`quantise_params` replaces the kernels of a language model's blocks by *packed* ones, `{kind: leaves}`. What
reads parameters works with them, and so does what is laid over them. QLoRA (Dettmers et al. 2023,
arXiv:2305.14314) is a packed base under a low-rank adapter:

    base = quantise_params(params, "nf4")
    part, constants = init_lora(key, base, rank=8)
    hidden, _ = lm.encode(overlay(overlay(base, constants), part), tokens)

A packed kernel's leaves, behind the leading axes of a stack of layers:

    codes     uint8 [out, in / 2], the high half of a byte first; of int8, int8 [out, in]
    absmax    float32 [blocks], each block's largest magnitude; double-quantised, uint8 [blocks]
    spread    float32 [blocks / 256], if double-quantised: the largest |absmax - offset| of 256 blocks
    offset    float32 [], if double-quantised: the mean of absmax

Blocks run along the rows of the kernel's transpose, [out, in], as torch stores a linear layer: the bytes are
those that bitsandbytes makes of a published model (of GPT-2's too, whose kernels transformers turns before it
quantises them). The last block may be short. In place of the paper's paged optimiser see `learner.offload`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.types import Params

BLOCK = 64
"""Weights that share a scale."""
_GROUP = 256
"""Scales that share a scale of their own, where they are quantised too."""

# A value's code is its place. NF4: quantiles of N(0, 1), scaled to [-1, 1] (Dettmers et al. 2023, appendix
# E). FP4: a sign, two bits of exponent and one of mantissa, over 12.
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_FP4 = [x / 12 for x in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)]
_TABLES: dict[str, np.ndarray | None] = {
    "nf4": np.array(_NF4, np.float32),
    "fp4": np.array([*_FP4, *(-x for x in _FP4)], np.float32),
    "int4": np.arange(-7, 8, dtype=np.float32) / 7,
    "int8": None,
}
"""The value of every code; int8's is `code / 127`."""


def _signed_map() -> np.ndarray:
    """Return 256 values: per decade 10^-6..10^0, 2^i midpoints of [.1, 1] with either sign; then 0 and 1.

    Source: Dettmers et al. 2022, arXiv:2110.02861, dynamic tree quantisation.
    """
    edges = [np.linspace(0.1, 1.0, 2**i + 1) for i in range(7)]
    positive = np.concatenate([10.0 ** (i - 6) * (e[1:] + e[:-1]) / 2 for i, e in enumerate(edges)])
    return np.sort([*positive, *-positive, 0.0, 1.0]).astype(np.float32)


_SIGNED = _signed_map()


def is_packed(kernel: Any) -> bool:
    """Return whether a linear layer's kernel is quantised, `{kind: leaves}`."""
    return isinstance(kernel, dict)


def kernel_shape(kernel: Any) -> tuple[int, ...]:
    """Return [..., in, out] of a plain kernel or of the one that a packed kernel stands for."""
    if not is_packed(kernel):
        return kernel.shape
    ((kind, own),) = kernel.items()
    *stack, fan_out, columns = own["codes"].shape
    return (*stack, columns if kind == "int8" else 2 * columns, fan_out)


def quantise(kernel: jax.Array, kind: str = "nf4", *, double: bool = True) -> dict[str, dict[str, jax.Array]]:
    """Return a kernel packed: in each block, `absmax * (the nearest code's value)`.

    Args:
      kernel: [..., in, out] floating point; leading axes are a stack of kernels, each quantised on its own.
      kind: "nf4", "fp4", "int4" (-7..7) or "int8" (-127..127).
      double: quantise the scales as well, to 8 bits around their mean: .127 bits a weight instead of .5.

    Returns:
      `{kind: leaves}`, the module's.

    Raises:
      ValueError: for an unknown kind, a kernel packed already, of rank 1, of integers, or, in 4 bits, with an
        odd number of inputs.
    """
    if kind not in _TABLES:
        raise ValueError(f"kind must be one of {', '.join(_TABLES)}; got {kind!r}")
    if is_packed(kernel):
        raise ValueError(
            f"kernel must be plain to be quantised; got {', '.join(kernel)} already; "
            "merge(params, dtype=...) makes it plain"
        )
    if kernel.ndim < 2 or not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise ValueError(
            f"kernel must be floating point [..., in, out]; got {kernel.dtype} {kernel.shape}; leave it plain"
        )
    if kind != "int8" and kernel.shape[-2] % 2:
        raise ValueError(
            f"kernel must have an even number of inputs for two codes a byte; got {kernel.shape[-2]} of "
            f"{kernel.shape}; take int8, or leave its name out of targets"
        )
    return {kind: _pack(kernel, kind, double)}


@functools.partial(jax.jit, static_argnums=(1, 2))
def _pack(kernel: jax.Array, kind: str, double: bool) -> dict[str, jax.Array]:
    if kernel.ndim > 2:  # one layer's intermediate arrays at a time
        return jax.lax.map(lambda k: _pack(k, kind, double), kernel)
    absmax, scaled = _scale(kernel.T.astype(jnp.float32).reshape(-1), BLOCK)
    table = _TABLES[kind]
    if table is None:
        codes = jnp.round(127 * scaled).astype(jnp.int8).reshape(kernel.shape[::-1])
    else:
        halves = _nearest(scaled, table).reshape(kernel.shape[1], -1, 2)
        codes = halves[..., 0] << 4 | halves[..., 1]
    if not double:
        return {"codes": codes, "absmax": absmax}
    offset = jnp.mean(absmax)
    spread, scaled = _scale(absmax - offset, _GROUP)
    return {"codes": codes, "absmax": _nearest(scaled, _SIGNED), "spread": spread, "offset": offset}


def _scale(flat: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Return each block's largest magnitude [blocks], and the values [n] divided by theirs."""
    blocks = _blocks(flat, size)
    absmax = jnp.max(jnp.abs(blocks), axis=1)
    scaled = blocks * (1 / jnp.where(absmax == 0, 1.0, absmax))[:, None]  # not a quotient: bits as published
    return absmax, scaled.reshape(-1)[: flat.size]


def _blocks(flat: jax.Array, size: int) -> jax.Array:
    return jnp.pad(flat, (0, -flat.size % size)).reshape(-1, size)


def _nearest(x: jax.Array, table: np.ndarray) -> jax.Array:
    """Return the code [n] uint8 of the nearest value; half way, of the smaller."""
    order = np.argsort(table, kind="stable").astype(np.uint8)
    value = table[order].astype(np.float64)
    middle = ((value[1:] + value[:-1]) / 2).astype(np.float32)
    return jnp.asarray(order)[jnp.sum(x[:, None] > middle[None], axis=1)]


def dequantise(packed: dict[str, dict[str, jax.Array]], dtype: Any = jnp.float32) -> jax.Array:
    """Return the kernel [..., in, out] that a packed one stands for, computed in float32."""
    ((kind, own),) = packed.items()
    if own["codes"].ndim > 2:
        return jax.vmap(lambda own: dequantise({kind: own}, dtype))(own)
    table = _TABLES[kind]
    if table is None:
        value = own["codes"].astype(jnp.float32) / 127
    else:
        halves = jnp.stack([own["codes"] >> 4, own["codes"] & 15], axis=-1)
        value = jnp.asarray(table)[halves]
    fan_in, fan_out = kernel_shape(packed)
    blocks = _blocks(value.reshape(-1), BLOCK) * _absmax(own)[:, None]
    return blocks.reshape(-1)[: fan_in * fan_out].reshape(fan_out, fan_in).T.astype(dtype)


def _absmax(own: dict[str, jax.Array]) -> jax.Array:
    if "offset" not in own:
        return own["absmax"]
    scaled = _blocks(jnp.asarray(_SIGNED)[own["absmax"]], _GROUP) * own["spread"][:, None]
    return scaled.reshape(-1)[: own["absmax"].size] + own["offset"]


def multiply(x: jax.Array, packed: dict[str, dict[str, jax.Array]], shards: int = 1) -> jax.Array:
    """Return `x W` [..., out] in x's dtype for a packed W, of which a quarter stands in full at a time.

    It is made anew in the backward pass: kept for it, the kernels of all layers would stand at once. The loop
    over quarters is there since XLA's CPU scheduler makes all kernels of a block before it uses the first.

    Args:
      x: [..., in].
      packed: of `quantise`.
      shards: the number of devices among which the outputs are divided: each takes a quarter of its own.
    """
    return _multiply(x, packed, shards)


@functools.partial(jax.checkpoint, static_argnums=2)
def _multiply(x: jax.Array, packed: dict[str, dict[str, jax.Array]], shards: int) -> jax.Array:
    ((kind, own),) = packed.items()
    fan_in, fan_out = kernel_shape(packed)
    fits = lambda n: fan_out % n == 0 and fan_in * (fan_out // n) % BLOCK == 0
    shards = shards if fits(shards) else 1
    count = next((n for n in (4, 2) if fits(n * shards)), 1)

    @jax.checkpoint
    def piece(_: None, rows: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        return None, x @ dequantise({kind: dict(zip(("codes", "absmax"), rows, strict=True))}, x.dtype)

    pieces = own["codes"].reshape(count, fan_out // count, -1), _absmax(own).reshape(count, -1)
    if shards > 1:
        own_first = lambda c: jnp.swapaxes(c.reshape(shards, count, -1), 0, 1)
        pieces = jax.tree.map(lambda c: own_first(c).reshape(c.shape), pieces)
    _, y = jax.lax.scan(piece, None, pieces)
    y = jnp.moveaxis(y, 0, -2)
    if shards > 1:
        y = jnp.swapaxes(y.reshape(*y.shape[:-1], shards, -1), -3, -2)
    return y.reshape(*x.shape[:-1], fan_out)


def quantise_params(
    params: Params, kind: str = "nf4", *, targets: Sequence[str] | None = None, double: bool = True
) -> Params:
    """Return parameters with the kernels of a language model's blocks packed; all else stays as it is.

    Embeddings, norms, biases and heads stay plain. `adapters.merge(params, dtype=...)` brings plain kernels
    back.

    Args:
      params: of a language model, alone or within a larger tree (a reward model's, a classifier's).
      kind: as `quantise`'s.
      targets: names of the linear layers to pack; None, every one of the blocks.
      double: as `quantise`'s.

    Raises:
      ValueError: if a target names no linear layer of a block, or as `quantise`; it names the layer.
    """
    names: set[str] = set()

    def walk(tree: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(tree, dict):
            return tree
        if "kernel" not in tree or "layers" not in path:
            return {name: walk(sub, (*path, name)) for name, sub in tree.items()}
        names.add(path[-1])
        if targets is not None and path[-1] not in targets:
            return tree
        try:
            return tree | {"kernel": quantise(tree["kernel"], kind, double=double)}
        except ValueError as error:
            raise ValueError(f"{'/'.join(path)}: {error}") from error

    packed = walk(params, ())
    if not names or set(targets or ()) - names:
        raise ValueError(
            f"targets must name linear layers under 'layers'; got {targets}, the model has {sorted(names)}"
        )
    return packed
