"""Low-rank adapters (LoRA; Hu et al. 2021, arXiv:2106.09685): a small pytree beside a frozen base.

The adapted layer computes `x W + scale (x A) B` and the base is never changed, so switching the adapter off
gives the base back exactly: the reference policy of RLHF costs no second copy. (Lecture D5 prints `A x B`;
the product with shapes A [in, rank], B [rank, out] is the one meant.)
"""

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.types import Params

TARGETS = ("query", "key", "value", "attention_out", "up", "down")
"""The linear layers of GPT-2's blocks; blocks with SwiGLU also have a `gate`."""


def init_lora(
    key: chex.PRNGKey, params: Params, *, rank: int, targets: tuple[str, ...] | None = None
) -> Params:
    """Return an adapter for linear layers of the base; it starts as the identity, since B = 0.

    Args:
      key: source of A, drawn from U(-1/sqrt(in), 1/sqrt(in)).
      params: the base; a linear layer is a dict with a `kernel` of shape [..., in, out].
      rank: inner dimension, at least 1.
      targets: names of the layers to adapt; None, every linear layer.

    Returns:
      A tree of the base's form that holds only the targets: `{"a": [..., in, rank], "b": [..., rank, out]}`.

    Raises:
      ValueError: if the rank is below 1, or a target names no linear layer of the base.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1; got {rank}")
    places = _linear_layers(params, ())
    names = {path[-1] for path in places}
    targets = tuple(sorted(names)) if targets is None else targets
    if missing := sorted(set(targets) - names):
        raise ValueError(f"targets must name linear layers; got {missing}, the model has {sorted(names)}")
    places = [path for path in places if path[-1] in targets]
    adapter: dict = {}
    for path, place_key in zip(places, jax.random.split(key, len(places)), strict=True):
        *stack, fan_in, fan_out = _at(params, path)["kernel"].shape
        bound = fan_in**-0.5
        node = adapter
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = {
            "a": jax.random.uniform(place_key, (*stack, fan_in, rank), minval=-bound, maxval=bound),
            "b": jnp.zeros((*stack, rank, fan_out)),
        }
    return adapter


def merge_lora(params: Params, adapter: Params, *, scale: float) -> Params:
    """Return the base with the adapter folded in, `W + scale A B`, for inference without the adapter's cost.

    Args:
      params: the base.
      adapter: what `init_lora` returned, trained.
      scale: alpha / rank, the factor that the adapter was trained under.
    """
    if set(adapter) == {"a", "b"}:
        delta = scale * (adapter["a"] @ adapter["b"])
        return params | {"kernel": params["kernel"] + delta.astype(params["kernel"].dtype)}
    return params | {name: merge_lora(params[name], sub, scale=scale) for name, sub in adapter.items()}


def _linear_layers(params: Params, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    if not isinstance(params, dict):
        return []
    if "kernel" in params:
        return [path] if params["kernel"].ndim > 1 else []  # a scalar head's kernel is a vector
    return [found for name, sub in params.items() for found in _linear_layers(sub, (*path, name))]


def _at(params: Params, path: tuple[str, ...]) -> Params:
    for name in path:
        params = params[name]
    return params
