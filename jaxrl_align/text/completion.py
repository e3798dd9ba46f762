"""Completions of prompts of any lengths: a batch at once, or one token by token.

complete = make_completer(lm, response_length=64, stop_tokens=(1,), filters=Filters(top_p=0.9))
for completion in complete(params, prompts, jax.random.key(0), temperature=0.8):
    print(tokenizer.decode(completion.tokens))
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.checks import check_tokens
from jaxrl_align.data.tokens.padding import left_pad
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.text.generation import (
    WHOLE,
    DecodeState,
    Filters,
    Response,
    TextConfig,
    draw_token,
    generate,
    make_slots,
    read_prompt,
    read_token,
)
from jaxrl_align.text.shared_prompt import count_virtual_tokens
from jaxrl_align.types import PaddedTokens, Params


class Completion(NamedTuple):
    """The continuation of one prompt."""

    tokens: list[int]
    """Without the stop token."""
    log_prob: list[float]
    """Of each token, in nats, under the distribution that was sampled."""
    stopped: bool
    """True if a stop token ended it, rather than the length."""


def bucket_length(length: int, smallest: int = 16, steps: int = 1) -> int:
    """Return the next of few lengths, at least `smallest`, so that many lengths share few programs.

    They are the powers of two or, with `steps` above 1, that many from each power to the next.
    """
    power = 1 << (length - 1).bit_length()
    unit = max(power // (2 * steps), 1)
    return max(smallest, -(-length // unit) * unit)


def check_special_tokens(lm: LanguageModel, stop_tokens: Sequence[int], pad_token: int | None) -> int:
    """Check the special tokens and return the one that fills up."""
    size = lm.config.vocab_size
    named = [*stop_tokens, *([] if pad_token is None else [pad_token])]
    if not stop_tokens or not all(isinstance(t, int | np.integer) and 0 <= t < size for t in named):
        raise ValueError(
            f"stop_tokens must name some token, and they and pad_token lie in the vocabulary of {size}; got "
            f"{list(stop_tokens)} and {pad_token}; take the tokenizer's"
        )
    if pad_token in stop_tokens:
        raise ValueError(
            f"pad_token is never written, so it must be no stop token; got {pad_token}, stop_tokens="
            f"{list(stop_tokens)}; leave pad_token out"
        )
    return stop_tokens[0] if pad_token is None else pad_token


def pad_batch(
    lm: LanguageModel,
    params: Params,
    prompts: Sequence[Sequence[int]],
    response_length: int,
    pad_token: int,
) -> PaddedTokens:
    """Check prompts and return them as [B, P], P the bucket of the longest."""
    longest = max(map(len, prompts), default=0)
    if not len(prompts) or not min(map(len, prompts)):
        raise ValueError("every prompt must hold at least one token; give a start token for an empty one")
    virtual = count_virtual_tokens(params)
    if virtual + longest + response_length > lm.config.context:
        before = f" behind {virtual} virtual tokens" if virtual else ""
        raise ValueError(
            f"prompt and response must fit the context of {lm.config.context} tokens; got a prompt of "
            f"{longest}{before} and response_length={response_length}; shorten one of them"
        )
    rows = left_pad(prompts, bucket_length(longest), pad_token)
    check_tokens("tokens of prompts", rows.tokens, lm.config.vocab_size)
    return rows


def make_completer(
    lm: LanguageModel,
    *,
    response_length: int,
    stop_tokens: Sequence[int],
    pad_token: int | None = None,
    filters: Filters = WHOLE,
) -> Callable[..., list[Completion]]:
    """Return `(params, prompts, key, temperature=1.0) -> completions`, a batch at a time.

    Prompts may have any lengths; they are padded to buckets, so that a batch size compiles once per bucket,
    not once per length.

    Args:
      lm: the language model.
      response_length: the most tokens that are written.
      stop_tokens: each ends a completion.
      pad_token: a token that is never written, as the model's padding; None, every token may be.
      filters: what of the distribution is sampled.

    Returns:
      A function; it raises ValueError for an empty prompt, one beyond the context, or tokens out of range.
      Its `program` is the jitted function below.

    Raises:
      ValueError: for no stop token, a token outside the vocabulary, or padding that is a stop token.
    """
    fill = check_special_tokens(lm, stop_tokens, pad_token)

    @jax.jit
    def program(params: Any, rows: Any, keys: Any, temperature: Any) -> Response:
        config = TextConfig(rows.tokens.shape[1], response_length, stop_tokens[0], fill)
        one = lambda prompt, key: generate(
            lm,
            params,
            prompt,
            key,
            config,
            temperature=temperature,
            filters=filters,
            stop_tokens=stop_tokens,
        )
        return jax.vmap(one)(rows, keys)

    def complete(
        params: Params,
        prompts: Sequence[Sequence[int]],
        key: chex.PRNGKey,
        temperature: float = 1.0,
    ) -> list[Completion]:
        check_temperature(temperature)
        rows = pad_batch(lm, params, prompts, response_length, fill)
        keys = jax.random.split(key, len(prompts))
        response = program(params, rows, keys, jnp.float32(temperature))
        tokens, log_prob, _, mask = map(np.asarray, response)
        return [_completion(*row, stop_tokens) for row in zip(tokens, log_prob, mask, strict=True)]

    complete.program = program  # type: ignore[attr-defined]
    return complete


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless a temperature is a number above 0."""
    if not temperature > 0.0:
        raise ValueError(f"temperature must be above 0; got {temperature}; for greedy take Filters(top_k=1)")


def _completion(
    tokens: np.ndarray, log_prob: np.ndarray, mask: np.ndarray, stop_tokens: Sequence[int]
) -> Completion:
    count = int(mask.sum())
    stopped = int(tokens[count - 1]) in stop_tokens
    kept = count - stopped
    return Completion(tokens[:kept].tolist(), log_prob[:kept].tolist(), stopped)


def make_streamer(
    lm: LanguageModel,
    *,
    response_length: int,
    stop_tokens: Sequence[int],
    pad_token: int | None = None,
    filters: Filters = WHOLE,
) -> Callable[..., Iterator[int]]:
    """Return `(params, prompt, key, temperature=1.0) -> tokens`, one by one as they are written.

    They are the same as `make_completer`'s of one prompt under the key. Every token is a call of its own, so
    this is slower than a completer: for people who watch. It compiles once per bucket of prompt lengths.

    Args:
      lm: the language model.
      response_length: the most tokens that are written.
      stop_tokens: each ends the completion and is not yielded.
      pad_token: a token that is never written; None, every token may be.
      filters: what of the distribution is sampled.

    Returns:
      A function; at its first token it raises ValueError for what a completer refuses.

    Raises:
      ValueError: as `make_completer`.
    """
    fill = check_special_tokens(lm, stop_tokens, pad_token)
    shape = lambda prompt: TextConfig(prompt.tokens.shape[0], response_length, stop_tokens[0], fill)

    @jax.jit
    def read(params: Any, prompt: Any, key: Any) -> DecodeState:
        config = shape(prompt)
        return read_prompt(lm, params, prompt, make_slots(prompt, config), key, config, filters)

    @jax.jit
    def draw(params: Any, prompt: Any, state: DecodeState, temperature: Any) -> tuple[DecodeState, Response]:
        stops = tuple(stop_tokens)
        return draw_token(lm, params, state, shape(prompt), filters, stops, temperature, None)

    @jax.jit
    def follow(params: Any, prompt: Any, state: DecodeState, token: Any, index: Any) -> DecodeState:
        return read_token(lm, params, make_slots(prompt, shape(prompt)), state, token, index)

    def write(
        params: Params, prompt: Sequence[int], key: chex.PRNGKey, temperature: float = 1.0
    ) -> Iterator[int]:
        check_temperature(temperature)
        rows = pad_batch(lm, params, [prompt], response_length, fill)
        padded = jax.tree.map(lambda x: jnp.asarray(x[0]), rows)
        state = read(params, padded, jax.random.split(key, 1)[0])
        first = len(padded.tokens)
        for index in range(first, first + response_length):
            state, out = draw(params, padded, state, jnp.float32(temperature))
            token = int(out.tokens)
            if token in stop_tokens:
                return
            yield token
            if index + 1 < first + response_length:
                state = follow(params, padded, state, out.tokens, jnp.int32(index))

    return write


def stream(
    lm: LanguageModel,
    params: Params,
    prompt: Sequence[int],
    key: chex.PRNGKey,
    *,
    response_length: int,
    stop_tokens: Sequence[int],
    pad_token: int | None = None,
    temperature: float = 1.0,
    filters: Filters = WHOLE,
) -> Iterator[int]:
    """Yield the tokens of one completion as they are written; of many, `make_streamer` compiles once.

    Raises:
      ValueError: at the first token, for what `make_completer` and its function refuse.
    """
    how = {"response_length": response_length, "stop_tokens": stop_tokens, "pad_token": pad_token}
    yield from make_streamer(lm, filters=filters, **how)(params, prompt, key, temperature)  # type: ignore[arg-type]


def as_written(decode: Callable[[Sequence[int]], str], tokens: Iterable[int]) -> Iterator[str]:
    """Yield a piece of text for each token as it comes, and at last what is left over.

    A character that needs several tokens comes with the last of them; the pieces before are empty.

    Args:
      decode: token ids to text, such as `Tokenizer.decode`.
      tokens: for example those of `stream`.
    """
    written: list[int] = []
    shown = ""
    for token in tokens:
        written.append(token)
        text = decode(written)
        whole = shown if text.endswith("\N{REPLACEMENT CHARACTER}") else text
        yield whole[len(shown) :]
        shown = whole
    yield decode(written)[len(shown) :]
