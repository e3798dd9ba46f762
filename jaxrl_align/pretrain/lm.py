"""Next-token training: pre-training on windows of text, and fine-tuning on prompts and completions.

Both are one loss; they differ in the mask. `next_token_objective` reads `TokenBatch`es, in which `mask` marks
the tokens that are predicted: all of a window, or the completion alone.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_align.learner import LossFn, make_gradient_learner, make_optimizer
from jaxrl_align.losses import masked_mean, next_token_loss
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.types import Learner, Metrics, Params, Sampler


class LMHParams(NamedTuple):
    """The traced scalars of next-token training."""

    learning_rate: Any = 1e-3


class TokenBatch(NamedTuple):
    """Sequences to predict, each leaf [B, L]."""

    tokens: chex.Array
    """int32; padding anywhere."""
    real: chex.Array
    """float, 1 where a token may be read, 0 for padding."""
    predict: chex.Array
    """float, 1 where a token counts in the loss; the first of a sequence cannot be predicted."""


def sample_windows(tokens: chex.Array, *, batch_size: int, length: int) -> Sampler:
    """Return a sampler of random windows of one long text that lies on the device.

    Args:
      tokens: [N] int32.
      batch_size: windows per batch.
      length: tokens that are read per window; one more is predicted.

    Raises:
      ValueError: if the text is shorter than one window.
    """
    if tokens.shape[0] < length + 1:
        raise ValueError(
            f"the corpus must hold at least one window of {length + 1} tokens; got {tokens.shape[0]}; "
            "give more text or a shorter context"
        )

    def sample(key: chex.PRNGKey) -> TokenBatch:
        start = jax.random.randint(key, (batch_size,), 0, tokens.shape[0] - length)
        rows = jax.vmap(lambda i: jax.lax.dynamic_slice_in_dim(tokens, i, length + 1))(start)
        ones = jnp.ones(rows.shape)
        return TokenBatch(rows, ones, ones)

    return sample


def sample_rows(data: Any, *, batch_size: int) -> Sampler:
    """Return a sampler of rows, with replacement, from a tree of arrays [N, ...] that lies on the device."""
    rows = jax.tree.leaves(data)[0].shape[0]
    if rows < 1:
        raise ValueError("the data set must hold at least one row; got none")

    def sample(key: chex.PRNGKey) -> Any:
        index = jax.random.randint(key, (batch_size,), 0, rows)
        return jax.tree.map(lambda x: x[index], data)

    return sample


def next_token_objective(lm: LanguageModel, *, lora: bool = False) -> LossFn:
    """Return the mean next-token loss of a `TokenBatch`, over the tokens marked `predict`.

    With `lora` the trained parameters are an adapter, and the frozen tree is the base that it sits on.
    """

    def one(
        base: Params, adapter: Params | None, row: TokenBatch
    ) -> tuple[chex.Array, chex.Array, chex.Array]:
        hidden, _ = lm.encode(base, row.tokens[:-1], row.real[:-1], adapter=adapter)
        logits = lm.logits(base, hidden)
        targets = row.tokens[1:]
        hit = (jnp.argmax(logits, -1) == targets).astype(jnp.float32)
        return next_token_loss(logits, targets), hit, row.predict[1:] * row.real[1:]

    def loss(
        params: Params, frozen: Any, batch: TokenBatch, key: chex.PRNGKey, hparams: Any
    ) -> tuple[chex.Array, Metrics]:
        if lora and frozen is None:
            raise ValueError(
                "an adapter needs its base; pass init(key, hparams, params=adapter, frozen=base)"
            )
        base, adapter = (frozen, params) if lora else (params, None)
        nats, hit, counts = jax.vmap(one, (None, None, 0))(base, adapter, batch)
        return masked_mean(nats, counts), {
            "mean_token_accuracy": masked_mean(hit, counts),
            "num_tokens": jnp.sum(counts),
        }

    return loss


def make_lm_learner(
    lm: LanguageModel,
    sample: Sampler | None = None,
    *,
    total_steps: int | None = None,
    warmup_steps: int = 0,
    lora: bool = False,
    optimizer: optax.GradientTransformation | None = None,
) -> Learner:
    """Build the learner of next-token training; start from given parameters to fine-tune.

    Args:
      lm: the language model.
      sample: `key -> TokenBatch`.
      total_steps: the learning rate falls linearly to 0 over this many steps.
      warmup_steps: it first rises over this many.
      lora: train an adapter: `init(key, hparams, params=adapter, frozen=base)`.
      optimizer: an update rule without its learning rate; default Adam with b2 = 0.95, eps = 1e-8 behind a
        global norm of 1 (Brown et al. 2020, appendix B).

    Returns:
      A `Learner` with metrics `loss` (nats a token), `mean_token_accuracy`, `num_tokens`, `grad_norm`,
      `learning_rate`.
    """

    def init_params(key: chex.PRNGKey) -> Params:
        if lora:
            raise ValueError(
                "there is no adapter to train; pass init(..., params=init_lora(...), frozen=base)"
            )
        return lm.init(key)

    return make_gradient_learner(
        init_params,
        next_token_objective(lm, lora=lora),
        sample,
        optimizer=optimizer or make_optimizer(max_grad_norm=1.0, b2=0.95, eps=1e-8),
        total_steps=total_steps,
        warmup_steps=warmup_steps,
    )
