"""Texts that a language model writes until a stop string, which may span tokens.

write = make_text_writer(lm, tokenizer, response_length=64, stop_tokens=(2,), stop_strings=("\\n\\n", "Q:"))
print(write(params, [tokenizer.encode("Q: 2 + 2? A:")], jax.random.key(0)))
"""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.checks import check_counts
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.text.completion import check_special_tokens, check_temperature, pad_batch
from jaxrl_align.text.generation import (
    DecodeState,
    Filters,
    TextConfig,
    anywhere,
    draw_token,
    make_slots,
    read_prompt,
    read_token,
)
from jaxrl_align.types import PaddedTokens, Params

GREEDY = Filters(top_k=1)


def cut_at(text: str, stop_strings: Sequence[str]) -> str:
    """Return a text up to, and without, the first of the stop strings that it holds."""
    return text[: min((at for stop in stop_strings if (at := text.find(stop)) >= 0), default=len(text))]


def make_text_writer(
    lm: LanguageModel,
    tokenizer: Tokenizer,
    *,
    response_length: int,
    stop_tokens: Sequence[int],
    stop_strings: Sequence[str] = (),
    filters: Filters = GREEDY,
    piece: int = 16,
) -> Callable[..., list[str]]:
    """Return `(params, prompts, key, temperature=1.0) -> texts`, a batch of prompts of any lengths at a time.

    Tokens are those of `text.make_completer` under the same key, and the text ends before the first stop
    string. After every `piece` tokens the texts are looked at; the writing ends with the last text that goes
    on. A stop string that is a special token's text counts as a stop token.

    Args:
      lm: the language model.
      tokenizer: decodes what was written.
      response_length: the most tokens that are written.
      stop_tokens: each ends a text; at least one, here or spelled by a stop string.
      stop_strings: likewise; none is empty.
      filters: what of the distribution is sampled; by default the likeliest token is written.
      piece: tokens between two looks.

    Returns:
      A function; it raises ValueError for an empty prompt, one beyond the context, or tokens out of range.

    Raises:
      ValueError: for a count below 1, an empty stop string, no stop token or one outside the vocabulary.
    """
    check_counts(response_length=response_length, piece=piece)
    if isinstance(stop_strings, str) or not all(stop_strings):
        raise ValueError(f"stop_strings must be a list of texts, none empty; got {stop_strings!r}")
    special = [token for stop in stop_strings if (token := tokenizer.special_token(stop)) is not None]
    stops = tuple(dict.fromkeys([*stop_tokens, *special]))
    fill = check_special_tokens(lm, stops, None)
    pieces = -(-response_length // piece)
    shape = lambda prompt: TextConfig(prompt.tokens.shape[0], pieces * piece, stops[0], fill)

    @jax.jit
    def read(params: Any, rows: Any, keys: Any) -> DecodeState:
        one = lambda prompt, key: read_prompt(
            lm, params, prompt, make_slots(prompt, shape(prompt)), key, shape(prompt), filters
        )
        return jax.vmap(one)(rows, keys)

    @jax.jit
    def go_on(params: Any, rows: Any, state: Any, start: Any, temperature: Any) -> tuple[Any, Any]:
        one = lambda prompt, state: _write_piece(
            lm, params, prompt, state, shape(prompt), filters, stops, start, temperature, piece
        )
        return jax.vmap(one)(rows, state)

    def write(
        params: Params, prompts: Sequence[Sequence[int]], key: chex.PRNGKey, temperature: float = 1.0
    ) -> list[str]:
        check_temperature(temperature)
        rows = pad_batch(lm, params, prompts, response_length, fill)
        state = read(params, rows, jax.random.split(key, len(prompts)))
        tokens = np.zeros((len(prompts), 0), np.int64)
        texts = [""] * len(prompts)
        for start in range(0, pieces * piece, piece):
            state, new = go_on(params, rows, state, jnp.int32(start), jnp.float32(temperature))
            tokens = np.append(tokens, new, 1)
            # Behind a text's end stands `fill`, which is a stop token.
            written = ~np.isin(tokens, stops) & (np.arange(tokens.shape[1]) < response_length)
            whole = [tokenizer.decode(row[own]) for row, own in zip(tokens, written, strict=True)]
            texts = [cut_at(text, stop_strings) for text in whole]
            goes_on = np.array([a == b for a, b in zip(texts, whole, strict=True)]) & np.asarray(state.alive)
            if not goes_on.any():
                break
            state = state._replace(alive=jnp.asarray(goes_on))
        return texts

    return write


def _write_piece(
    lm: LanguageModel,
    params: Params,
    prompt: PaddedTokens,
    state: DecodeState,
    config: TextConfig,
    filters: Filters,
    stops: Sequence[int],
    start: jax.Array,
    temperature: jax.Array,
    piece: int,
) -> tuple[DecodeState, jax.Array]:
    """Write the next `piece` tokens of ONE text, and read them; return them, padded behind its end."""
    slots = make_slots(prompt, config)

    def goes_on(carry: Any) -> jax.Array:
        return (carry[0] < piece) & anywhere(carry[1].alive)

    def write(carry: Any) -> Any:
        index, state, tokens = carry
        state, out = draw_token(lm, params, state, config, filters, stops, temperature, None)
        state = read_token(lm, params, slots, state, out.tokens, config.prompt_length + start + index)
        return index + 1, state, tokens.at[index].set(out.tokens)

    nothing = jnp.full(piece, config.pad_token, jnp.int32)
    return jax.lax.while_loop(goes_on, write, (jnp.zeros((), jnp.int32), state, nothing))[1:]
