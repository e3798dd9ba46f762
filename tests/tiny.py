"""A tiny language model with weights large enough to matter, shared by the tests of every room."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxrl_align.nets.transformer import Cache, LanguageModel, TransformerConfig, make_transformer

VOCAB = 20
LM = make_transformer(TransformerConfig(VOCAB, width=16, layers=2, heads=2, context=80))


@jax.jit
def disturb(tree, key, scale):
    """Return a tree with every leaf moved at random: biases and norms too stop being trivial."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    moved = [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


def draw_params(lm, scale=0.3, seed=0):
    """Return random parameters drawn by NumPy, which compiles nothing."""
    random = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(scale * random.standard_normal(leaf.shape), leaf.dtype)
    return jax.tree.map(draw, jax.eval_shape(lm.init, jax.random.key(0)))


PARAMS = jax.jit(lambda key: disturb(LM.init(key), jax.random.key(1), 0.2))(jax.random.key(0))
encode_all = jax.jit(jax.vmap(LM.encode, (None, 0, 0)))


def make_bigram(vocab, **shape):
    """Return a model that predicts from the last token alone: it compiles fast."""
    nothing = Cache(jnp.zeros(1), jnp.zeros(1))
    return LanguageModel(
        TransformerConfig(vocab, width=vocab, heads=1, **shape),
        lambda key: jax.random.normal(key, (vocab, vocab)),
        lambda params, tokens, *_, **__: (jax.nn.one_hot(tokens, vocab), nothing),
        lambda params, hidden: hidden @ params,
        lambda length: nothing,
    )


BIGRAM = make_bigram(VOCAB)
"""Under it a label changes without an input that matters."""


def favour(token, amount, lm=LM):
    """Return the model with `amount` added to one token's logit."""
    bias = amount * jax.nn.one_hot(token, lm.config.vocab_size)

    def logits(params, hidden):
        plain = lm.logits(params, hidden)
        return plain + jnp.broadcast_to(bias, plain.shape)

    return lm._replace(logits=logits)


def primitives(jaxpr):
    """Return the names of all primitives of a jaxpr, those of its sub-jaxprs included."""
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    is_jaxpr = lambda x: isinstance(x, core.ClosedJaxpr | core.Jaxpr)
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for inner in filter(is_jaxpr, jax.tree.leaves(equation.params, is_leaf=is_jaxpr)):
            names |= primitives(inner)
    return names


def bits(tree):
    """Return every leaf's raw bytes, so that equality means equality of bits."""
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return [
        np.asarray(jax.random.key_data(x) if is_key(x) else x).tobytes()
        for x in map(jnp.asarray, jax.tree.leaves(tree))
    ]
