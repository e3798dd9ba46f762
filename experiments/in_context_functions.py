"""The functions of `in_context.py`: prompts of pairs (x, w x + noise), and what can be known of them.

Garg et al. 2022 (arXiv:2208.01066): a transformer reads x_1, y_1, ..., x_k, y_k, x and predicts y; w is drawn
anew for every prompt, so that nothing about it lies in the weights.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_align.learner import make_gradient_learner, make_optimizer
from jaxrl_align.nets.transformer import (
    LanguageModel,
    TransformerConfig,
    apply_scalar_head,
    init_scalar_head,
    make_transformer,
)
from jaxrl_align.types import Learner, Params


class Pairs(NamedTuple):
    """Prompts of functions: x [..., K, d] and y [..., K]."""

    x: jax.Array
    y: jax.Array


def draw_pairs(key: chex.PRNGKey, noise: Any, *, prompts: int, points: int, dimension: int) -> Pairs:
    """Draw prompts of K points each: w and x from N(0, I), y = w x + noise N(0, 1)."""
    key_w, key_x, key_e = jax.random.split(key, 3)
    w = jax.random.normal(key_w, (prompts, dimension))
    x = jax.random.normal(key_x, (prompts, points, dimension))
    y = jnp.einsum("nkd,nd->nk", x, w) + noise * jax.random.normal(key_e, (prompts, points))
    return Pairs(x, y)


def make_reader(points: int, width: int, layers: int) -> LanguageModel:
    """Return a transformer whose vocabulary is the places of a prompt: each has an embedding of its own."""
    return make_transformer(TransformerConfig(2 * points, width, layers, heads=4, context=2 * points))


def predict(lm: LanguageModel, params: Params, pairs: Pairs) -> jax.Array:
    """Return what the transformer says of each y [K] of ONE prompt, from all pairs before it and its x."""
    points, dimension = pairs.x.shape
    x = jnp.concatenate([pairs.x, jnp.zeros((points, 1))], 1)
    y = jnp.concatenate([jnp.zeros((points, dimension)), pairs.y[:, None]], 1)
    table = jnp.stack([x, y], 1).reshape(2 * points, -1) @ params["read"]
    hidden, _ = lm.encode(params["lm"] | {"tokens": table}, jnp.arange(2 * points))
    return apply_scalar_head(params["head"], hidden[::2])


def widen(params: Params) -> Params:
    """Return a start whose kernels are five times as wide.

    Kernels of 0.02, as the language models start, are for wide nets: here the loss would stand still.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, x: 5.0 * x if path[-1].key == "kernel" else x, params
    )


def make_function_learner(
    lm: LanguageModel, noise: Any, *, prompts: int, points: int, dimension: int, steps: int
) -> Learner:
    """Build the learner of mean squared errors over all points of freshly drawn prompts."""

    def init(key: chex.PRNGKey) -> Params:
        key_lm, key_read = jax.random.split(key)
        width = lm.config.width
        read = jax.random.normal(key_read, (dimension + 1, width)) / jnp.sqrt(dimension)
        return {"lm": widen(lm.init(key_lm)), "read": read, "head": init_scalar_head(None, width)}

    def loss(params: Params, frozen: Any, pairs: Pairs, key: chex.PRNGKey, hparams: Any) -> Any:
        said = jax.vmap(lambda one: predict(lm, params, one))(pairs)
        return jnp.mean(jnp.square(said - pairs.y)), {}

    draw = lambda key: draw_pairs(key, noise, prompts=prompts, points=points, dimension=dimension)
    optimizer: optax.GradientTransformation = make_optimizer(max_grad_norm=1.0, eps=1e-8)
    return make_gradient_learner(
        init, loss, draw, optimizer=optimizer, total_steps=steps, warmup_steps=steps // 20
    )


def ridge(pairs: Pairs, penalty: float) -> np.ndarray:
    """Return ridge regression's prediction of each y [N, K] of N prompts from the pairs before it.

        w = argmin sum_i (y_i - w x_i)^2 + penalty |w|^2

    With w from N(0, I) and noise of variance `penalty` it is the mean of the posterior, so no predictor has a
    smaller expected squared error; towards a penalty of 0 it is least squares, of smallest norm.
    """
    x, y = (np.asarray(value, np.float64) for value in pairs)
    found = np.zeros(y.shape)
    for k in range(1, y.shape[1]):
        seen, said = x[:, :k], y[:, :k, None]
        transposed = np.swapaxes(seen, 1, 2)
        w = np.linalg.solve(transposed @ seen + penalty * np.eye(x.shape[2]), transposed @ said)
        found[:, k] = (x[:, k, None] @ w)[:, 0, 0]
    return found


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("in_context")
