"""The concepts of `in_context.py`: a mixture of hidden Markov models, whose posterior can be computed.

Xie et al. 2022 (arXiv:2111.02080): every document comes from one concept, that is one hidden Markov model. A
document here is a row of examples, each of a few symbols from a fresh start of the chain and a delimiter.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.types import TokenBatch

DELIMITER = 0


class Concepts(NamedTuple):
    """C hidden Markov models that share what their H states emit; logs of probabilities."""

    start: jax.Array
    """[C, H]."""
    move: jax.Array
    """[C, H, H] from a state, the second axis, to the next."""
    emit: jax.Array
    """[H, V]; the delimiter is never emitted."""


def draw_concepts(key: chex.PRNGKey, *, concepts: int, states: int, symbols: int) -> Concepts:
    """Draw a world: sparse emissions that all concepts share, starts and moves of each concept's own."""
    key_start, key_move, key_emit = jax.random.split(key, 3)
    draw = lambda key, rate, *shape: jnp.log(jax.random.dirichlet(key, jnp.full(shape[-1], rate), shape[:-1]))
    emit = draw(key_emit, 0.1, states, symbols)
    emit = jnp.concatenate([jnp.full((states, 1), -jnp.inf), emit], 1)
    least = lambda x: jax.nn.log_softmax(jnp.maximum(x, -20.0))
    return Concepts(
        least(draw(key_start, 0.2, concepts, states)),
        least(draw(key_move, 0.2, concepts, states, states)),
        emit,
    )


def write_document(
    key: chex.PRNGKey, concepts: Concepts, concept: jax.Array, *, examples: int, length: int
) -> jax.Array:
    """Write one document [1 + examples (length + 1)] of a concept: a delimiter, then its examples."""

    def example(key: chex.PRNGKey) -> jax.Array:
        key_start, *keys = jax.random.split(key, 1 + 2 * length)
        state = jax.random.categorical(key_start, concepts.start[concept])
        said = []
        for i in range(length):
            said.append(jax.random.categorical(keys[2 * i], concepts.emit[state]))
            state = jax.random.categorical(keys[2 * i + 1], concepts.move[concept, state])
        return jnp.array([*said, DELIMITER])

    rows = jax.vmap(example)(jax.random.split(key, examples))
    return jnp.concatenate([jnp.array([DELIMITER]), rows.reshape(-1)]).astype(jnp.int32)


def draw_documents(
    key: chex.PRNGKey, concepts: Concepts, *, documents: int, examples: int, length: int
) -> tuple[TokenBatch, jax.Array]:
    """Draw documents [N, L] and the concept of each [N]; their symbols alone are predicted."""
    key_concept, key_words = jax.random.split(key)
    which = jax.random.randint(key_concept, (documents,), 0, concepts.start.shape[0])
    write = lambda key, concept: write_document(key, concepts, concept, examples=examples, length=length)
    tokens = jax.vmap(write)(jax.random.split(key_words, documents), which)
    ones = jnp.ones(tokens.shape)
    return TokenBatch(tokens, ones, (tokens != DELIMITER).astype(jnp.float32)), which


class Exact(NamedTuple):
    """What can be known of ONE document's symbols before each is read."""

    nats: jax.Array
    """[L - 1] `-log p(x_t | x_{<t})` of the mixture, where the concept is unknown."""
    posterior: jax.Array
    """[L - 1, C] probability of each concept, given the tokens before t."""


def read_exactly(concepts: Concepts, tokens: jax.Array, prior: jax.Array) -> Exact:
    """Read ONE document by the forward algorithm over concepts and states.

    Args:
      concepts: the world.
      tokens: [L] that begin with a delimiter; it restarts the chain and says nothing about the concept.
      prior: [C] log-probabilities of the concepts; one-hot for a reader who knows it.
    """

    def step(joint: jax.Array, token: jax.Array) -> tuple[jax.Array, Exact]:
        concept = jax.nn.logsumexp(joint, 1)
        total = jax.nn.logsumexp(concept)
        seen = joint + concepts.emit[None, :, token]
        moved = jax.nn.logsumexp(seen[:, :, None] + concepts.move, 1)
        restarted = concept[:, None] + concepts.start
        joint = jnp.where(token == DELIMITER, restarted, moved)
        return joint, Exact(total - jax.nn.logsumexp(seen), jnp.exp(concept - total))

    return jax.lax.scan(step, prior[:, None] + concepts.start, tokens[1:])[1]


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("in_context")
