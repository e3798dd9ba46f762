"""A reward head learnt from comparisons: annotators', of the model's sentences, or people's, of reviews."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from align_task import Task, Written

from jaxrl_align.align import choose_completions
from jaxrl_align.data.labelled_texts import load_sst2
from jaxrl_align.data.tokens.padding import right_pad
from jaxrl_align.feedback import compare
from jaxrl_align.learner import make_gradient_learner, make_optimizer, train
from jaxrl_align.losses import bradley_terry
from jaxrl_align.types import Comparisons, Numeric, PaddedTokens, Params


class HeadHParams(NamedTuple):
    """Of the reward head."""

    learning_rate: Numeric = 0.003
    decay: Numeric = 1.0
    """Weight of the squared norm; few comparisons need much."""


def compare_sentences(
    task: Task, written: Written, rng: np.random.Generator, times: int, temperature: float
) -> tuple[Comparisons, np.ndarray]:
    """Let a noisy annotator who judges by VADER compare the sentences on each topic, each one `times` times.

    Returns:
      Comparisons [N, ...] in random order, and the features [N, 2, width] of the chosen and the rejected.
    """
    topics, answers = written.vader.shape
    pairs = [
        (topic, *pair)
        for topic in range(topics)
        for _ in range(times)
        for pair in rng.permutation(answers)[: answers // 2 * 2].reshape(-1, 2)
    ]
    topic, a, b = rng.permutation(pairs).T
    first = compare(written.vader[topic, a], written.vader[topic, b], rng, temperature=temperature)
    side = lambda i: PaddedTokens(jnp.asarray(written.tokens[topic, i]), jnp.asarray(written.real[topic, i]))
    prompts = jax.tree.map(lambda x: x[topic], task.prompts)
    chosen, rejected = np.where(first, a, b), np.where(first, b, a)
    features = np.stack([written.features[topic, i] for i in (chosen, rejected)], 1)
    return choose_completions(prompts, side(a), side(b), jnp.asarray(first)), features


def compare_reviews(task: Task, rng: np.random.Generator, count: int) -> tuple[Comparisons, np.ndarray]:
    """Pair sentences of film reviews that people called positive with others that they called negative.

    The Stanford Sentiment Treebank (Socher et al. 2013), as Ziegler et al. (2019) use it for their first
    reward model.

    Returns:
      As `compare_sentences`; the prompt asks for a sentence about a film.
    """
    train = load_sst2().train
    sides = []
    for label in (1, 0):
        texts = [t for t, found in zip(train.texts, train.labels, strict=True) if found == label]
        rows = (task.tokenizer.encode(texts[i], special=False) for i in rng.permutation(len(texts)))
        whole = [row for row in rows if 8 <= len(row) < task.text.response_length][:count]
        stopped = [[*row, task.text.stop_token] for row in whole]
        sides.append(right_pad(stopped, task.text.response_length, task.text.pad_token))
    prompts = task.ask(["a film"] * count, opening=False)
    chosen, rejected = (jax.tree.map(jnp.asarray, PaddedTokens(*side)) for side in sides)
    features = np.stack([task.features(prompts, side) for side in (chosen, rejected)], 1)
    return Comparisons(prompts, chosen, rejected), features


def fit_head(features: np.ndarray, seen: np.ndarray, hparams: HeadHParams) -> Params:
    """Fit a linear reward to comparisons by Bradley and Terry's loss, full batches.

    Args:
      features: [N, 2, width] of the chosen and the rejected.
      seen: [M, width] answers over which scores shall have mean 0 and deviation 1.
      hparams: of the fit.
    """
    mean, std = features.mean((0, 1)), features.std((0, 1)) + 1e-6
    scaled = jnp.asarray((features - mean) / std)

    def loss(params: Params, frozen: Any, batch: jax.Array, key: Any, hparams: Any) -> Any:
        chosen, rejected = (batch @ params).T
        return jnp.mean(bradley_terry(chosen, rejected)) + hparams.decay * jnp.sum(params**2), {}

    learner = make_gradient_learner(
        lambda key: jnp.zeros(features.shape[-1]),
        loss,
        lambda key: scaled,
        optimizer=make_optimizer(max_grad_norm=None),
    )
    state, _ = jax.jit(train(learner, 500))(jax.random.key(0), hparams)
    kernel = np.asarray(state.params) / std
    kernel = kernel / np.std(seen @ kernel)
    return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(-np.mean(seen @ kernel))}


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("align")
