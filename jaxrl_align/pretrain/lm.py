"""Next-token training: pre-training on windows of text, and fine-tuning on prompts and completions.

Both are one loss; they differ in the mask. `next_token_objective` reads `TokenBatch`es, in which `predict`
marks the tokens that are predicted: all of a window, or the completion alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from jaxrl_align.data.batches import HostBatches
from jaxrl_align.data.mixtures import normalise_weights
from jaxrl_align.data.tokens.padding import right_pad
from jaxrl_align.data.tokens.streams import stream_rows
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.learner import Decay, LossFn, linear_decay, make_gradient_learner, make_optimizer
from jaxrl_align.losses import next_token_loss
from jaxrl_align.nets.adapters import overlay, with_dropout
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.types import Learner, Metrics, Numeric, Params, Sampler, TokenBatch


class LMHParams(NamedTuple):
    """The traced scalars of next-token training."""

    learning_rate: Numeric = 1e-3


def packed_batch(packed: Any) -> TokenBatch:
    """Return rows of `data.pack` as a `TokenBatch`: all tokens but each document's first count."""
    segments = jnp.asarray(packed.segments)
    real = (segments > 0).astype(jnp.float32)
    return TokenBatch(jnp.asarray(packed.tokens), real, real, segments)


def chat_batch(
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    *,
    length: int,
    **variables: Any,
) -> TokenBatch:
    """Return conversations as a `TokenBatch` [N, length] in which the assistant's words alone are predicted.

    Args:
      tokenizer: has a chat template with `{% generation %}` blocks.
      conversations: of each, the messages.
      length: of every row, in tokens.
      variables: of the template; see `Tokenizer.encode_demonstration`.

    Raises:
      ValueError: for a conversation beyond `length`, or what `encode_demonstration` refuses.
    """
    rows = [tokenizer.encode_demonstration(messages, **variables) for messages in conversations]
    tokens, real = right_pad([ids for ids, _ in rows], length, 0)
    said, _ = right_pad([said for _, said in rows], length, 0)
    return TokenBatch(jnp.asarray(tokens), jnp.asarray(real), jnp.asarray(said, jnp.float32))


def check_window(tokens: jax.Array, length: int) -> None:
    """Raise ValueError unless a text holds `length` tokens to read and one more to predict."""
    if tokens.shape[0] < length + 1:
        raise ValueError(
            f"the corpus must hold at least one window of {length + 1} tokens; got {tokens.shape[0]}; "
            "give more text or a shorter context"
        )


def sample_windows(tokens: jax.Array, *, batch_size: int, length: int) -> Sampler:
    """Return a sampler of random windows of one long text on the device.

    Args:
      tokens: [N] int32.
      batch_size: windows per batch.
      length: tokens that are read per window; one more is predicted.

    Raises:
      ValueError: if the text is shorter than one window.
    """
    check_window(tokens, length)

    def sample(key: chex.PRNGKey) -> TokenBatch:
        start = jax.random.randint(key, (batch_size,), 0, tokens.shape[0] - length)
        rows = jax.vmap(lambda i: jax.lax.dynamic_slice_in_dim(tokens, i, length + 1))(start)
        return TokenBatch(rows, None, jnp.ones(rows.shape))

    return sample


def sample_mixture(
    sources: Sequence[jax.Array], weights: ArrayLike, *, batch_size: int, length: int
) -> Sampler:
    """Return a sampler of windows whose source is drawn by weight, then its place within the source.

    Args:
      sources: the texts, [N_i] int32 each.
      weights: [S] shares of the windows; normalised to sum to 1.
      batch_size: windows per batch.
      length: tokens that are read per window; one more is predicted.

    Raises:
      ValueError: if weights and sources do not match, or a source is shorter than one window.
    """
    shares = normalise_weights(weights)
    if len(sources) != len(shares):
        raise ValueError(f"every source needs a weight; got {len(sources)} sources, {len(shares)} weights")
    for tokens in sources:
        check_window(tokens, length)
    sizes = np.array([tokens.shape[0] for tokens in sources])
    text = jnp.concatenate([jnp.asarray(tokens) for tokens in sources])
    first = jnp.asarray(np.cumsum(sizes) - sizes)
    last = jnp.asarray(sizes - length)
    log_shares = jnp.log(jnp.asarray(shares, jnp.float32))

    def sample(key: chex.PRNGKey) -> TokenBatch:
        key_source, key_start = jax.random.split(key)
        source = jax.random.categorical(key_source, log_shares, shape=(batch_size,))
        start = first[source] + jax.random.randint(key_start, (batch_size,), 0, last[source])
        rows = jax.vmap(lambda i: jax.lax.dynamic_slice_in_dim(text, i, length + 1))(start)
        return TokenBatch(rows, None, jnp.ones(rows.shape))

    return sample


def stream_windows(tokens: np.ndarray, *, batch_size: int, length: int, seed: int = 0) -> HostBatches:
    """Return `(first_step, steps) -> TokenBatch` of [steps, B, L + 1]: windows of a text on the host.

    `runtime.loop.run(learner.step, ..., batches=stream_windows(open_tokens(path), ...))` trains on a file
    that is larger than memory; see `data.stream_rows`, which draws the windows.
    """
    windows = stream_rows(tokens, batch_size=batch_size, length=length, seed=seed)

    def read(first_step: int, steps: int, rows: slice) -> TokenBatch:
        drawn = windows(first_step, steps, rows)
        return TokenBatch(drawn, None, np.ones(drawn.shape, np.float32))  # type: ignore[arg-type]

    return HostBatches(batch_size, read)


def sample_rows(data: Any, *, batch_size: int) -> Sampler:
    """Return a sampler of rows, with replacement, from a tree of arrays [N, ...] on the device."""
    rows = jax.tree.leaves(data)[0].shape[0]
    if rows < 1:
        raise ValueError("the data set must hold at least one row; got none")

    def sample(key: chex.PRNGKey) -> Any:
        index = jax.random.randint(key, (batch_size,), 0, rows)
        return jax.tree.map(lambda x: x[index], data)

    return sample


def predict_row(lm: LanguageModel, params: Params, row: TokenBatch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Predict every next token of one row.

    Returns:
      nats: [L - 1] negative log-probability of each token but the first.
      hit: [L - 1] 1 where the likeliest token was right.
      counts: [L - 1] 1 where the token is real, counts, and is not the first of its document.
    """
    segments = None if row.segments is None else row.segments[:-1]
    tokens, real = row.tokens[:-1], None if row.real is None else row.real[:-1]
    hidden, _ = lm.encode(params, tokens, real, segments=segments)
    logits = lm.logits(params, hidden)
    targets = row.tokens[1:]
    hit = is_likeliest(logits, targets).astype(jnp.float32)
    counts = row.predict[1:] if row.real is None else row.predict[1:] * row.real[1:]
    if row.segments is not None:
        counts = counts * (row.segments[1:] == row.segments[:-1])
    return next_token_loss(logits, targets), hit, counts


def is_likeliest(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return [T] `argmax(logits [T, V]) == targets [T]`, of equal ones the first, as a plain reduction.

    An argmax of 8,192 logits takes XLA's CPU backend 4% of a training step's time more.
    """
    own = jnp.take_along_axis(logits, targets[:, None], -1)
    later = jnp.arange(logits.shape[1])[None] >= targets[:, None]
    return jnp.all((logits < own) | ((logits == own) & later), -1)


def next_token_objective(lm: LanguageModel, *, microbatches: int = 1) -> LossFn:
    """Return the mean next-token loss of a `TokenBatch`, over the tokens marked `predict`.

    The trained parameters are laid over the frozen ones, where there are any. With `microbatches` the batch
    is read in that many parts, one in memory at a time; tokens weigh as in the whole, and the gradient is the
    whole batch's, at the price of a second forward pass.
    """

    def sums(params: Params, batch: TokenBatch, keys: chex.PRNGKey) -> jax.Array:
        read = lambda row, key: predict_row(lm, with_dropout(params, key), row)
        nats, hit, counts = jax.vmap(read)(batch, keys)
        return jnp.stack([jnp.sum(nats * counts), jnp.sum(hit * counts), jnp.sum(counts)])

    def loss(
        params: Params, frozen: Any, batch: TokenBatch, key: chex.PRNGKey, hparams: Any
    ) -> tuple[jax.Array, Metrics]:
        params = overlay(frozen, params)
        if batch.real is None and lm.config.attention == "xla":
            # To XLA a mask costs little; without, learned positions' gradients are summed in another order.
            batch = batch._replace(real=jnp.ones(batch.tokens.shape))
        size = batch.tokens.shape[0]
        keys = jax.random.split(key, size)
        if microbatches == 1:
            total = sums(params, batch, keys)
        else:
            if size % microbatches:
                raise ValueError(
                    f"microbatches must divide the batch; got {size} rows and microbatches={microbatches}"
                )
            parts = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), (batch, keys))
            part_sums = jax.checkpoint(lambda part: sums(params, *part), prevent_cse=False)
            total, _ = jax.lax.scan(lambda s, part: (s + part_sums(part), None), jnp.zeros(3), parts)
        nats, hits, counts = total
        count = jnp.maximum(counts, 1.0)
        return nats / count, {"mean_token_accuracy": hits / count, "num_tokens": counts}

    return loss


def make_lm_learner(
    lm: LanguageModel,
    sample: Sampler | None = None,
    *,
    total_steps: int | None = None,
    warmup_steps: int = 0,
    decay: Decay = linear_decay,
    microbatches: int = 1,
    optimizer: optax.GradientTransformation | None = None,
) -> Learner:
    """Build the learner of next-token training; start from given parameters to fine-tune.

    To train a part of a model, such as an adapter, give `init` the part as its parameters, and each step the
    rest as `frozen`.

    Args:
      lm: the language model.
      sample: `key -> TokenBatch`.
      total_steps: the learning rate falls over this many steps; None keeps it constant.
      warmup_steps: it first rises over this many.
      decay: how it falls: linearly to 0, or `learner.cosine_decay`.
      microbatches: parts in which a batch is read, to save memory; see `next_token_objective`.
      optimizer: an update rule without its learning rate; default Adam with b2 = 0.95, eps = 1e-8 behind a
        global norm of 1 (Brown et al. 2020, appendix B). Theirs decays weights too:
        `make_optimizer(max_grad_norm=1.0, b2=0.95, eps=1e-8, weight_decay=0.1)`.

    Returns:
      A `Learner` with metrics `loss` (nats a token), `mean_token_accuracy`, `num_tokens`, `grad_norm`,
      `learning_rate`.
    """
    return make_gradient_learner(
        lm.init,
        next_token_objective(lm, microbatches=microbatches),
        sample,
        optimizer=optimizer or make_optimizer(max_grad_norm=1.0, b2=0.95, eps=1e-8),
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        decay=decay,
    )


def make_text_loss(
    lm: LanguageModel, tokens: ArrayLike, *, length: int, batch_size: int = 32
) -> Callable[[Params], tuple[jax.Array, jax.Array]]:
    """Return `params -> (nats, num_tokens)`: a whole held-out text, read once in windows side by side.

    Every token but the very first is predicted once, from at most `length` tokens before it. Divided, the two
    are the loss; see `perplexity` and `bits_per_byte`.

    Args:
      lm: the language model.
      tokens: [N] the text.
      length: tokens that are read per window.
      batch_size: windows at a time.

    Raises:
      ValueError: if the text has fewer than two tokens.
    """
    tokens = np.asarray(tokens, np.int32)
    if tokens.ndim != 1 or len(tokens) < 2:
        raise ValueError(f"a text must have at least two tokens, [N]; got shape {list(tokens.shape)}")
    windows = -(-(len(tokens) - 1) // length)
    batches = -(-windows // batch_size)
    padded = np.zeros(batches * batch_size * length + 1, np.int32)
    padded[: len(tokens)] = tokens
    start = np.arange(batches * batch_size)[:, None] * length + np.arange(length + 1)[None]
    real = jnp.asarray(start < len(tokens), jnp.float32)
    rows = TokenBatch(jnp.asarray(padded[start]), real, real)
    rows = jax.tree.map(lambda x: x.reshape(batches, batch_size, length + 1), rows)

    def loss(params: Params) -> tuple[jax.Array, jax.Array]:
        def add(total: jax.Array, batch: TokenBatch) -> tuple[jax.Array, None]:
            nats, _, counts = jax.vmap(lambda row: predict_row(lm, params, row))(batch)
            return total + jnp.sum(nats * counts), None

        return jax.lax.scan(add, jnp.zeros(()), rows)[0], jnp.float32(len(tokens) - 1)

    return loss


def perplexity(nats: jax.Array, num_tokens: Numeric) -> jax.Array:
    """Return `exp(nats / num_tokens)`; it depends on the tokenizer."""
    return jnp.exp(nats / num_tokens)


def bits_per_byte(nats: jax.Array, num_bytes: Numeric) -> jax.Array:
    """Return `nats / (num_bytes ln 2)`, which models with different tokenizers share.

    Args:
      nats: [...] of the whole text.
      num_bytes: the text's length in UTF-8.
    """
    return nats / (num_bytes * jnp.log(2.0))
