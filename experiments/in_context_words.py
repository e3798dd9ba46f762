"""The word tasks of `in_context.py`: sentences classed by one of their words, with label words drawn anew.

A sentence has one word of each of F fields, for example a colour and an animal. A task is a field that
decides, and a label word for each of its W words. Some ways to label a field's words never occur while the
model is trained: their tasks are the held-out ones.
"""

import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.types import Params, TokenBatch

FIELDS, WORDS, LABELS = 2, 4, 4
BEGIN, COLON = 0, 1
FIRST_WORD = 2
FIRST_LABEL = FIRST_WORD + FIELDS * WORDS
VOCAB = FIRST_LABEL + LABELS
EXAMPLE = FIELDS + 2
"""Tokens of an example: its words, the colon, its label."""


class Tasks(NamedTuple):
    """Every task that there is."""

    field: np.ndarray
    """[T] which decides."""
    labels: np.ndarray
    """[T, W] the label that it gives to each word of that field."""
    held_out: np.ndarray
    """[T] bool."""


class Prompts(NamedTuple):
    """Sentences of a task and their labels."""

    words: jax.Array
    """[..., K, F] from 0 to W - 1."""
    labels: jax.Array
    """[..., K] from 0 to LABELS - 1."""


def _list_tasks() -> Tasks:
    """Return the tasks; of each field every fourth assignment of labels to words is held out."""
    assigned = list(enumerate(itertools.permutations(range(LABELS), WORDS)))
    rows = [(field, labels, number % 4 == field) for field in range(FIELDS) for number, labels in assigned]
    return Tasks(*map(np.array, zip(*rows, strict=True)))


TASKS = _list_tasks()
KNOWN, HELD_OUT = np.flatnonzero(~TASKS.held_out), np.flatnonzero(TASKS.held_out)


def draw_examples(key: chex.PRNGKey, task: jax.Array, examples: int) -> Prompts:
    """Draw sentences [K, F] and label them as a task, a row of `TASKS`, says."""
    words = jax.random.randint(key, (examples, FIELDS), 0, WORDS)
    decides = words[:, jnp.asarray(TASKS.field)[task]]
    return Prompts(words, jnp.asarray(TASKS.labels)[task, decides])


def draw_prompts(key: chex.PRNGKey, tasks: np.ndarray, *, prompts: int, examples: int) -> Prompts:
    """Draw prompts [N, K], each of one of some tasks."""

    def one(key: chex.PRNGKey) -> Prompts:
        key_task, key_words = jax.random.split(key)
        return draw_examples(key_words, jax.random.choice(key_task, tasks), examples)

    return jax.vmap(one)(jax.random.split(key, prompts))


def as_tokens(prompts: Prompts) -> TokenBatch:
    """Return prompts [N, K] as rows [N, 1 + K EXAMPLE] in which the labels alone are predicted."""
    words = FIRST_WORD + WORDS * jnp.arange(FIELDS)[None, None] + prompts.words
    colon = jnp.full((*prompts.labels.shape, 1), COLON)
    rows = jnp.concatenate([words, colon, FIRST_LABEL + prompts.labels[..., None]], -1)
    rows = rows.reshape(rows.shape[0], -1)
    tokens = jnp.concatenate([jnp.full((rows.shape[0], 1), BEGIN), rows], 1).astype(jnp.int32)
    ones = jnp.ones(tokens.shape)
    return TokenBatch(tokens, ones, ones * (tokens >= FIRST_LABEL))


def label_log_probs(lm: LanguageModel, params: Params, row: jax.Array) -> jax.Array:
    """Return the log-probabilities [K, LABELS] of each label of ONE row, given all before it."""
    hidden, _ = lm.encode(params, row[:-1])
    at_colons = hidden[EXAMPLE - 1 :: EXAMPLE]
    return jax.nn.log_softmax(lm.logits(params, at_colons)[:, FIRST_LABEL:])


def bayes(prompts: Prompts) -> jax.Array:
    """Return the probabilities [K, LABELS] of each label of ONE prompt, given all before it.

    They are those of a reader to whom all tasks, the held-out ones too, are alike before the first example.
    """
    said = jnp.take_along_axis(jnp.asarray(TASKS.labels), prompts.words.T[TASKS.field], axis=1)
    fits = jnp.cumprod(said == prompts.labels[None], 1)
    before = jnp.concatenate([jnp.ones((len(said), 1)), fits[:, :-1]], 1)
    votes = jnp.einsum("tk,tkl->kl", before, jax.nn.one_hot(said, LABELS))
    return votes / votes.sum(-1, keepdims=True)


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("in_context")
