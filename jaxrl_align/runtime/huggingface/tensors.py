"""Map between the tensors of a Hugging Face checkpoint and our parameters, both ways.

A family's record names the modules; which tensors these have follows from our parameters, whose kernels are
`[in, out]` and whose layers are stacked in front.
"""

import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.nets.quantize import is_packed, kernel_shape, quantise, quantise_params
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.runtime.devices.hosts import gather
from jaxrl_align.runtime.devices.spreading import put_weight
from jaxrl_align.runtime.huggingface.families import Family


class Tensor(NamedTuple):
    """One tensor of a checkpoint."""

    name: str
    places: tuple[tuple[str, ...], ...]
    """Paths of the leaves that it holds, side by side along the last axis."""
    layer: int | None = None
    """Its index in the leaves' first axis, if they are stacked."""
    transposed: bool = False


def tensors_of(config: TransformerConfig, record: Family) -> list[Tensor]:
    """Return every tensor that a family's checkpoint of this configuration must hold, once.

    Raises:
      ValueError: if the family's record has no name for a parameter.
    """
    shapes, found = param_shapes(config), []
    for theirs, ours in record.names.items():
        stacked = "{}" in theirs
        tree, above = (shapes["layers"], ("layers",)) if stacked else (shapes, ())
        modules = ours.split()
        for leaf in _leaves(tree.get(modules[0], {})):
            places = tuple((*above, module, *leaf) for module in modules)
            end = "bias" if leaf == ("bias",) else "weight"
            transposed = record.transposed and leaf == ("kernel",)
            for i in range(config.layers) if stacked else [None]:
                name = f"{record.prefix}{theirs.format(i)}.{end}"
                found.append(Tensor(name, places, i, transposed))
    if not config.tied_head:
        found.append(Tensor(f"{record.head}.weight", (("head",),), transposed=True))
    every = {tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
    if nameless := every - {place for tensor in found for place in tensor.places}:
        nameless = sorted(".".join(path) for path in nameless)
        raise ValueError(f"the record of {record.architecture} names no tensor for {', '.join(nameless)}")
    return found


def _leaves(module: Any) -> list[tuple[str, ...]]:
    """Return the paths of a module's leaves within it; of a bare array, the empty path."""
    return [(name,) for name in module] if isinstance(module, Mapping) else [()]


def empty_params(
    config: TransformerConfig, dtype: Any = np.float32, *, quantise: str | None = None
) -> dict[str, Any]:
    """Return the parameters' tree with arrays whose content is not set: of a dtype, or packed."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), param_shapes(config))
    if quantise is not None:
        shapes = jax.eval_shape(lambda params: quantise_params(params, quantise), shapes)
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)


def to_jax(params: dict[str, Any], *path: str) -> dict[str, Any]:
    """Make JAX arrays of a tree's arrays in place: one at a time is in memory twice; on a mesh, divided."""
    for name, leaf in params.items():
        if isinstance(leaf, dict):
            to_jax(leaf, *path, name)
        else:  # Waiting lets go of the array before the next one is copied.
            params[name] = put_weight(leaf, *path, name).block_until_ready()
    return params


@functools.lru_cache(8)
def param_shapes(config: TransformerConfig) -> dict[str, Any]:
    """Return the parameters' tree with shapes for arrays; shared among callers, who leave it as it is."""
    return jax.eval_shape(make_transformer(config).init, jax.random.key(0))


def check_size(config: TransformerConfig, shapes: Iterable[Sequence[int]]) -> None:
    """Raise ValueError for a configuration of far more weights, or layers, than a file holds tensors of.

    What a configuration claims is believed only then: nothing of that size was made yet.

    Args:
      config: to be checked.
      shapes: of the file's tensors.
    """
    shapes = list(shapes)
    stored = sum(math.prod(shape) for shape in shapes)
    attention = 2 * (config.heads + config.kv_heads) * config.depth * config.width
    hidden = 0 if config.feed_forward == "none" else 2 * config.hidden * config.width
    positions = config.context if config.positions == "learned" else 0
    claimed = config.layers * (attention + hidden) + (config.vocab_size + positions) * config.width
    if claimed > 2 * stored + 2**20 or config.layers > len(shapes):
        raise ValueError(
            f"the configuration must describe the {stored} weights in {len(shapes)} tensors that there are; "
            f"got {config.layers} layers with {claimed} weights; take both from the same model"
        )


def tensor_shape(tensor: Tensor, params: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape that a tensor has in the checkpoint, given parameters of the configuration."""
    shapes = [kernel_shape(_leaf(params, place))[tensor.layer is not None :] for place in tensor.places]
    shape = (*shapes[0][:-1], sum(s[-1] for s in shapes))
    return shape[::-1] if tensor.transposed else shape


def misfits(
    got: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], optional: Collection[str] = ()
) -> str:
    """Say which tensors are missing, unexpected or mis-shaped, the first three of each; empty if none is."""
    missing = sorted(wanted.keys() - got.keys())
    left_over = sorted(got.keys() - wanted.keys() - set(optional))
    wrong = sorted(name for name in wanted.keys() & got.keys() if got[name] != wanted[name])
    faults = [f"{len(missing)} missing: {', '.join(missing[:3])}"] if missing else []
    faults += [f"{len(left_over)} unexpected: {', '.join(left_over[:3])}"] if left_over else []
    faults += [f"{name} expected {wanted[name]}, got {got[name]}" for name in wrong[:3]]
    return "; ".join(faults)


def from_tensor(tensor: Tensor, array: np.ndarray, params: Mapping[str, Any]) -> None:
    """Write a tensor of the checkpoint to its place in NumPy parameters, packed where the place is."""
    array = array.T if tensor.transposed else array
    leaves = [_leaf(params, place) for place in tensor.places]
    widths = np.cumsum([kernel_shape(leaf)[-1] for leaf in leaves])[:-1]
    at = ... if tensor.layer is None else tensor.layer
    for leaf, part in zip(leaves, np.split(array, widths, -1), strict=True):
        if is_packed(leaf):
            (kind,) = leaf
            part = quantise(jnp.asarray(part), kind)
        jax.tree.map(lambda to, values: to.__setitem__(at, values), leaf, part)


def to_tensor(tensor: Tensor, params: Mapping[str, Any]) -> np.ndarray:
    """Return a tensor of the checkpoint; contiguous, since safetensors writes the memory behind an array."""
    leaves = [np.asarray(gather(_leaf(params, place))) for place in tensor.places]
    leaves = leaves if tensor.layer is None else [leaf[tensor.layer] for leaf in leaves]
    array = np.concatenate(leaves, -1)
    return np.ascontiguousarray(array.T if tensor.transposed else array)


def _leaf(params: Mapping[str, Any], place: tuple[str, ...]) -> Any:
    for name in place:
        params = params[name]
    return params
