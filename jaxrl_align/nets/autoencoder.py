"""One autoencoder layer, the brick of greedy layer-wise pre-training (Bengio et al. 2006)."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import flax.linen as nn
import jax

from jaxrl_align.types import Params

__all__ = ["Autoencoder", "make_autoencoder"]

Activation = Callable[[chex.Array], chex.Array]


class Autoencoder(NamedTuple):
    """Four pure functions over one plain dict of parameters; each takes ONE example, the caller vmaps."""

    init: Callable[[chex.PRNGKey], Params]
    """`key -> params`, `{"encoder": {"kernel" [D, H], "bias" [H]}, "decoder": {...}}`."""
    encode: Callable[[Params, chex.Array], chex.Array]
    """`(params, x [D]) -> code [H]`; reads `params["encoder"]` only."""
    decode: Callable[[Params, chex.Array], chex.Array]
    """`(params, code [H]) -> reconstruction [D]`."""
    apply: Callable[[Params, chex.Array], chex.Array]
    """`(params, x [D]) -> reconstruction [D]`, which is `decode(encode(x))`."""


def make_autoencoder(
    input_dim: int,
    hidden_dim: int,
    *,
    activation: Activation = jax.nn.sigmoid,
    output_activation: Activation | None = None,
    tied: bool = False,
) -> Autoencoder:
    """Build `h = f(x W + b)` and `y = g(h V + c)`, where tied weights set `V = W^T`.

    Kernels start Glorot-uniform and biases at 0 (Glorot & Bengio 2010).

    Args:
      input_dim: D, the length of an example.
      hidden_dim: H, the length of its code.
      activation: f, for example `jax.nn.sigmoid`, `jnp.tanh` or `jax.nn.relu`.
      output_activation: g; None leaves the reconstruction linear, which also serves as the logits of a
        Bernoulli reconstruction.
      tied: the decoder reuses the encoder's kernel and keeps a bias of its own.

    Returns:
      An `Autoencoder`; the decoder of a tied one has no `kernel` among its parameters.

    Raises:
      ValueError: if a dimension is below 1.
    """
    if input_dim < 1 or hidden_dim < 1:
        raise ValueError(
            f"input_dim and hidden_dim must be at least 1; got input_dim={input_dim}, hidden_dim={hidden_dim}"
        )
    glorot, zeros = nn.initializers.glorot_uniform(), nn.initializers.zeros

    def init(key: chex.PRNGKey) -> Params:
        key_encoder, key_decoder = jax.random.split(key)
        encoder = {"kernel": glorot(key_encoder, (input_dim, hidden_dim)), "bias": zeros(None, (hidden_dim,))}
        decoder = {"bias": zeros(None, (input_dim,))}
        if not tied:
            decoder["kernel"] = glorot(key_decoder, (hidden_dim, input_dim))
        return {"encoder": encoder, "decoder": decoder}

    def encode(params: Params, x: chex.Array) -> chex.Array:
        chex.assert_shape(x, (input_dim,))
        return activation(x @ params["encoder"]["kernel"] + params["encoder"]["bias"])

    def decode(params: Params, code: chex.Array) -> chex.Array:
        chex.assert_shape(code, (hidden_dim,))
        kernel = params["encoder"]["kernel"].T if tied else params["decoder"]["kernel"]
        y = code @ kernel + params["decoder"]["bias"]
        return y if output_activation is None else output_activation(y)

    def apply(params: Params, x: chex.Array) -> chex.Array:
        return decode(params, encode(params, x))

    return Autoencoder(init, encode, decode, apply)
