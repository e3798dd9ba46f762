"""A feed-forward classifier whose hidden layers can be trained one at a time, and their autoencoders."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.types import Params

Activation = Callable[[jax.Array], jax.Array]

GLOROT = jax.nn.initializers.glorot_uniform()
"""Kernels that keep the scale of what passes through, forward and backward (Glorot & Bengio 2010)."""


class LayeredNet(NamedTuple):
    """Pure functions over `{"layers": (layer, ...), "head": layer}`, where a layer is `{"kernel", "bias"}`.

    Each takes ONE example; the caller vmaps.
    """

    input_dim: int
    widths: tuple[int, ...]
    num_classes: int
    activation: Activation
    init: Callable[[chex.PRNGKey], Params]
    """`key -> params`."""
    init_head: Callable[[chex.PRNGKey, int], Params]
    """`(key, width) -> head` of zero biases that reads a code of this width."""
    encode: Callable[[Sequence[Params], jax.Array], jax.Array]
    """`(layers, x) -> code`: runs the layers it is given, all of them or any consecutive few."""
    classify: Callable[[Params, jax.Array], jax.Array]
    """`(head, code) -> logits [num_classes]`."""


def fan_in_uniform(key: chex.PRNGKey, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Draw a kernel from U(-1/sqrt(in), 1/sqrt(in)), as was the custom before Glorot & Bengio (2010)."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def make_layered_net(
    input_dim: int,
    widths: Sequence[int],
    num_classes: int,
    *,
    activation: Activation = jax.nn.sigmoid,
    kernel_init: Callable[..., jax.Array] = GLOROT,
) -> LayeredNet:
    """Build `x -> f(x W_1 + b_1) -> ... -> code -> code V + c`.

    Args:
      input_dim: length of an example.
      widths: the hidden layers', first to last; none makes a linear classifier.
      num_classes: length of the logits.
      activation: f, applied after every hidden layer.
      kernel_init: `(key, shape) -> kernel`, for the layers and the head; biases start at 0.

    Raises:
      ValueError: if a size is below 1.
    """
    widths = tuple(widths)
    if min(input_dim, num_classes, *widths) < 1:
        raise ValueError(
            f"sizes must be at least 1; got input_dim={input_dim}, widths={widths}, num_classes={num_classes}"
        )

    def init_layer(key: chex.PRNGKey, rows: int, columns: int) -> Params:
        return {"kernel": kernel_init(key, (rows, columns)), "bias": jnp.zeros(columns)}

    def init_head(key: chex.PRNGKey, width: int) -> Params:
        return init_layer(key, width, num_classes)

    def init(key: chex.PRNGKey) -> Params:
        sizes = (input_dim, *widths)
        *keys, key_head = jax.random.split(key, len(sizes))
        layers = tuple(map(init_layer, keys, sizes[:-1], sizes[1:]))
        return {"layers": layers, "head": init_head(key_head, sizes[-1])}

    def encode(layers: Sequence[Params], x: jax.Array) -> jax.Array:
        chex.assert_rank(x, 1)
        if layers and x.shape != (rows := layers[0]["kernel"].shape[:1]):
            raise ValueError(
                f"an example must have the {rows[0]} values that the layer reads; got {x.shape[0]}; "
                f"images of another size need a net of their own: make_layered_net({x.shape[0]}, ...)"
            )
        for layer in layers:
            x = activation(x @ layer["kernel"] + layer["bias"])
        return x

    def classify(head: Params, code: jax.Array) -> jax.Array:
        return code @ head["kernel"] + head["bias"]

    return LayeredNet(input_dim, widths, num_classes, activation, init, init_head, encode, classify)


class Autoencoder(NamedTuple):
    """Four pure functions over one plain dict of parameters; each takes ONE example, the caller vmaps."""

    init: Callable[[chex.PRNGKey], Params]
    """`key -> params`, `{"encoder": {"kernel" [D, H], "bias" [H]}, "decoder": {...}}`."""
    encode: Callable[[Params, jax.Array], jax.Array]
    """`(params, x [D]) -> code [H]`; reads `params["encoder"]` only."""
    decode: Callable[[Params, jax.Array], jax.Array]
    """`(params, code [H]) -> reconstruction [D]`."""
    apply: Callable[[Params, jax.Array], jax.Array]
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

    def init(key: chex.PRNGKey) -> Params:
        key_encoder, key_decoder = jax.random.split(key)
        encoder = {"kernel": GLOROT(key_encoder, (input_dim, hidden_dim)), "bias": jnp.zeros(hidden_dim)}
        decoder = {"bias": jnp.zeros(input_dim)}
        if not tied:
            decoder["kernel"] = GLOROT(key_decoder, (hidden_dim, input_dim))
        return {"encoder": encoder, "decoder": decoder}

    def encode(params: Params, x: jax.Array) -> jax.Array:
        chex.assert_shape(x, (input_dim,))
        return activation(x @ params["encoder"]["kernel"] + params["encoder"]["bias"])

    def decode(params: Params, code: jax.Array) -> jax.Array:
        chex.assert_shape(code, (hidden_dim,))
        kernel = params["encoder"]["kernel"].T if tied else params["decoder"]["kernel"]
        y = code @ kernel + params["decoder"]["bias"]
        return y if output_activation is None else output_activation(y)

    def apply(params: Params, x: jax.Array) -> jax.Array:
        return decode(params, encode(params, x))

    return Autoencoder(init, encode, decode, apply)
