"""The concepts of `in_context.py`: a mixture of hidden Markov models, whose posterior can be computed.

Xie et al. 2022 (arXiv:2111.02080): every document comes from one concept, that is one hidden Markov model. A
document here is a row of examples, each of a few symbols from a fresh start of the chain and a delimiter.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner, predict_row
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import train_members, with_data
from jaxrl_align.types import Params, TokenBatch

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


def learn_concepts(config: Any, folder: RunFolder) -> dict[str, Any]:
    """Train on documents of a mixture of concepts, and read documents of these and of new ones.

    Returns:
      `nats` {documents: {reader: [M, K]}} nats a symbol by the number of examples before; `posterior` [M, K]
      probability of the true concept, exactly.
    """
    shape = {"examples": config.concept_examples, "length": config.example_length}
    context = 1 + config.concept_examples * (config.example_length + 1)
    lm = make_transformer(TransformerConfig(config.symbols + 1, config.width, config.layers, 4, context))
    size = {"concepts": 2 * config.concepts, "states": config.states, "symbols": config.symbols}
    worlds = jax.vmap(lambda key: draw_concepts(key, **size))(config.keys(3))
    split = lambda world, part: world._replace(start=world.start[part], move=world.move[part])
    known, new = (
        split(worlds, np.s_[:, part]) for part in (np.s_[: config.concepts], np.s_[config.concepts :])
    )
    steps = config.concept_steps
    learner = with_data(
        lambda world: make_lm_learner(
            lm,
            lambda key: draw_documents(key, world, documents=config.batch_size, **shape)[0],
            total_steps=steps,
            warmup_steps=steps // 20,
        )
    )
    own = folder.sub("concepts")
    options = {"frozen": known, "folder": own, "label": "concepts", "checkpoint_every": max(1, steps // 4)}
    params = train_members(learner, LMHParams(config.learning_rate), config, steps, **options).state.params
    by_example = lambda nats: nats.reshape(-1, config.concept_examples, config.example_length + 1)[
        ..., :-1
    ].mean((0, 2))
    flat = jnp.full(config.concepts, -jnp.log(config.concepts))

    @jax.jit
    @jax.vmap
    def read(params: Params, key: Any, written: Any, known: Any) -> dict[str, jax.Array]:
        rows, which = draw_documents(key, written, documents=config.tests, **shape)
        said = jax.vmap(lambda row: predict_row(lm, params, row)[0])(rows)
        exact = jax.vmap(lambda t: read_exactly(known, t, flat))(rows.tokens)
        sure = jnp.log(jax.nn.one_hot(which, config.concepts))
        told = jax.vmap(lambda t, prior: read_exactly(written, t, prior))(rows.tokens, sure)
        alone = rows.tokens[:, 1:].reshape(-1, config.example_length + 1)
        alone = jnp.concatenate([jnp.full((len(alone), 1), DELIMITER), alone], 1)
        unread = jax.vmap(lambda t: read_exactly(known, t, flat).nats)(alone)
        begin = slice(None, None, config.example_length + 1)
        return {
            "transformer": by_example(said),
            "exact posterior": by_example(exact.nats),
            "told the concept": by_example(told.nats),
            "examples unread": by_example(unread.reshape(exact.nats.shape)),
            "posterior": jnp.take_along_axis(exact.posterior[:, begin], which[:, None, None], 2).mean((0, 2)),
        }

    found = {
        name: jax.tree.map(np.asarray, read(params, config.keys(4), written, known))
        for name, written in {"known concepts": known, "new concepts": new}.items()
    }
    posterior = found["known concepts"]["posterior"]
    return {
        "nats": {name: {k: x for k, x in row.items() if k != "posterior"} for name, row in found.items()},
        "posterior": posterior,
    }


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("in_context")
