"""The word tasks of `in_context.py`: sentences classed by one of their words, with label words drawn anew.

A sentence has one word of each of F fields, for example a colour, an animal, a place, a number. A task is a
field that decides, a split of its W words into two halves, and two label words. One field never decides while
the model is trained: its tasks are the held-out ones.
"""

import itertools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.types import Params, TokenBatch

FIELDS, WORDS, LABELS = 4, 2, 4
BEGIN, COLON = 0, 1
FIRST_WORD = 2
FIRST_LABEL = FIRST_WORD + FIELDS * WORDS
VOCAB = FIRST_LABEL + LABELS
EXAMPLE = FIELDS + 2
"""Tokens of an example: its words, the colon, its label."""


class Task(NamedTuple):
    """What decides, and how the halves are called."""

    field: jax.Array  # type: ignore[assignment]
    """[]."""
    half: jax.Array
    """[W] 0 or 1 of each word of the field."""
    labels: jax.Array
    """[2] different label words."""


class Prompts(NamedTuple):
    """Sentences of a task and their labels."""

    words: jax.Array
    """[..., K, F] from 0 to W - 1."""
    labels: jax.Array
    """[..., K] from 0 to LABELS - 1."""


def draw_task(key: chex.PRNGKey, fields: jax.Array) -> Task:
    """Draw a task whose deciding field is one of `fields` [n]."""
    key_field, key_half, key_labels = jax.random.split(key, 3)
    half = jax.random.permutation(key_half, jnp.arange(WORDS) % 2)
    labels = jax.random.choice(key_labels, LABELS, (2,), replace=False)
    return Task(jax.random.choice(key_field, fields), half, labels)


def draw_examples(key: chex.PRNGKey, task: Task, examples: int) -> Prompts:
    """Draw sentences [K, F] and label them as a task says."""
    words = jax.random.randint(key, (examples, FIELDS), 0, WORDS)
    return Prompts(words, task.labels[task.half[words[:, task.field]]])


def draw_prompts(key: chex.PRNGKey, fields: jax.Array, *, prompts: int, examples: int) -> Prompts:
    """Draw prompts [N, K] of a task each."""

    def one(key: chex.PRNGKey) -> Prompts:
        key_task, key_words = jax.random.split(key)
        return draw_examples(key_words, draw_task(key_task, fields), examples)

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


def _list_tasks() -> tuple[np.ndarray, np.ndarray]:
    """Return every task: its field [T], and the label that it gives to each word of that field [T, W]."""
    halves = [half for half in itertools.product((0, 1), repeat=WORDS) if sum(half) == WORDS // 2]
    pairs = list(itertools.combinations(range(LABELS), 2))
    labels = [np.array(pair)[list(half)] for half in halves for pair in pairs]
    return np.repeat(np.arange(FIELDS), len(labels)), np.array(labels * FIELDS)


TASK_FIELDS, TASK_LABELS = _list_tasks()


def bayes(prompts: Prompts, fields: Any) -> jax.Array:
    """Return the posterior's probabilities [K, LABELS] of each label of ONE prompt, given all before it.

    Args:
      prompts: [K].
      fields: [F] prior weight of each deciding field; all tasks of a field weigh alike.
    """
    said = jnp.take_along_axis(jnp.asarray(TASK_LABELS), prompts.words.T[TASK_FIELDS], axis=1)
    fits = jnp.cumprod(said == prompts.labels[None], 1)
    before = jnp.concatenate([jnp.ones((len(TASK_FIELDS), 1)), fits[:, :-1]], 1)
    weight = before * jnp.asarray(fields, jnp.float32)[TASK_FIELDS][:, None]
    votes = jnp.einsum("tk,tkl->kl", weight, jax.nn.one_hot(said, LABELS))
    return votes / votes.sum(-1, keepdims=True)
