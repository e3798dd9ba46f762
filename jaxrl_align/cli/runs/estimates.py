"""How much memory a run will take, from shapes alone: nothing is compiled or computed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_align.nets.adapters import overlay
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.pretrain.lm import next_token_objective
from jaxrl_align.types import Params, TokenBatch

GIGA = 1e9


class Memory(NamedTuple):
    """Bytes of one update."""

    weights: int
    """Of everything that is read: the base, a reference, a reward model."""
    training: int
    """Of what trains: parameters, gradients and Adam's two moments."""
    activations: int
    """Stored between the forward and the backward pass."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def tree_bytes(tree: Any) -> int:
    """Return the bytes of a tree's arrays, or of the shapes that stand for them."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in _arrays(tree))  # random keys have a dtype too


def _arrays(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype") and hasattr(leaf, "size")]


def estimate_memory(
    lm: LanguageModel, part: Params, frozen: Params | None, *, rows: int, length: int, others: Any = None
) -> Memory:
    """Return the memory of an update that reads `rows` sequences of `length` tokens and predicts them.

    Activations are what JAX would store for the backward pass of the next-token loss, which every method's
    resembles, less the weights among it. The compiler may store less, and needs room for what it computes.

    Args:
      lm: the language model.
      part: what trains of it.
      frozen: what the part is laid over; None, the part is whole.
      rows: that are in memory at once.
      length: tokens.
      others: further arrays.
    """
    loss = next_token_objective(lm)
    real: Any = jax.ShapeDtypeStruct((rows, length), jnp.float32)
    tokens: Any = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    batch = TokenBatch(tokens, real, real)

    def residuals(part: Params, frozen: Any, batch: TokenBatch) -> Any:
        return jax.vjp(lambda p: loss(p, frozen, batch, jax.random.key(0), None)[0], part)[1]

    stored = tree_bytes(jax.eval_shape(residuals, part, frozen, batch))
    own = 0 if frozen is None else tree_bytes(frozen)
    read = tree_bytes(part if frozen is None else overlay(frozen, part))
    training = (3 if frozen is None else 4) * tree_bytes(part)
    return Memory((own or tree_bytes(part)) + tree_bytes(others), training, max(0, stored - read))


def halving_flags(batch: int, parts: int = 1, flag: str | None = None) -> tuple[str, ...]:
    """Return the settings that halve the rows in memory, none where they cannot be halved.

    Args:
      batch: rows of a step.
      parts: in which they are read one after the other; a divisor of `batch`.
      flag: sets the parts; None, the command has none.
    """
    if batch // parts % 2:
        return ()
    return (f"--batch-size {batch // 2}", *([] if flag is None else [f"{flag} {2 * parts}"]))


def memory_text(memory: Memory) -> str:
    """Return an estimate in words: `about 1.3 GB: weights 0.5, training 0.0, activations 0.8`."""
    parts = {name: getattr(memory, name) / GIGA for name in memory._fields}
    shares = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
    return f"about {memory.total / GIGA:.2f} GB: {shares}"
