"""A world of sums for `non_differentiable.py`: a tiny model, shown what its demonstrators wrote, right or not.

A prompt is "a+b=" of two digits; an answer is a number of up to two digits and the stop token. Two kinds of
demonstrators: *guessers* write every number from 0 to 18 equally often, so that one answer in 19 is right;
*rivals* write the sum and the number after it, equally often.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.nets.transformer import LanguageModel, TransformerConfig, make_transformer
from jaxrl_align.text.generation import TextConfig
from jaxrl_align.text.shared_prompt import completion_log_probs
from jaxrl_align.types import PaddedTokens, Params, TokenBatch

STOP, PLUS, EQUALS, VOCAB = 1, 12, 13, 14
"""Padding is 0, the digits are 2 to 11."""
TEXT = TextConfig(prompt_length=4, response_length=3, stop_token=STOP, missing_stop="keep")
NUMBERS = 19
CHOICES = 2 * NUMBERS
"""Demonstrations of each prompt: each guess twice, or each rival 19 times."""


def make_model(width: int) -> LanguageModel:
    """Build the language model of two layers that reads sums."""
    return make_transformer(TransformerConfig(VOCAB, width, layers=2, heads=4, context=8))


def write_number(number: int) -> list[int]:
    """Return a number's answer [T]: its digits, the stop token, padding."""
    tokens = [2 + int(digit) for digit in str(number)] + [STOP]
    return tokens + [0] * (TEXT.response_length - len(tokens))


def read_answer(tokens: list[int]) -> str:
    """Return an answer's tokens as text, up to the stop token."""
    signs = {PLUS: "+", EQUALS: "="}
    until = tokens.index(STOP) if STOP in tokens else len(tokens)
    return "".join(signs.get(token) or str(token - 2) for token in tokens[:until])


ANSWERS = np.array([write_number(number) for number in range(NUMBERS + 1)], np.int32)
"""[20, T]."""
PAIRS = np.array([(a, b) for a in range(10) for b in range(10)], np.int32)
"""[100, 2]."""


def prompts() -> PaddedTokens:
    """Return all prompts [100, P]."""
    a, b = PAIRS.T + 2
    tokens = np.stack([a, np.full_like(a, PLUS), b, np.full_like(a, EQUALS)], 1)
    return PaddedTokens(jnp.asarray(tokens), jnp.ones(tokens.shape))


def demonstrations(rivals: bool) -> TokenBatch:
    """Return what one kind of demonstrators wrote, rows [100 * CHOICES, P + T]."""
    sums = PAIRS.sum(1)[:, None]
    numbers = sums + np.arange(CHOICES) % 2 if rivals else np.tile(np.arange(NUMBERS), (len(sums), 2))
    answers = ANSWERS[numbers]
    asked = np.repeat(np.asarray(prompts().tokens)[:, None], CHOICES, 1)
    tokens = np.concatenate([asked, answers], -1).reshape(-1, TEXT.prompt_length + TEXT.response_length)
    real = (tokens > 0).astype(np.float32)
    predict = real * (np.arange(tokens.shape[1]) >= TEXT.prompt_length)
    return TokenBatch(jnp.asarray(tokens), jnp.asarray(real), jnp.asarray(predict, jnp.float32))


def score(paid: Any, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Pay `paid[0]` for the exact sum, `paid[1]` for the number after it, 0 for anything else.

    Args:
      paid: [2].
      tokens: [P + T].
      mask: [P + T].
    """
    total = tokens[0] + tokens[2] - 4
    answer = tokens[TEXT.prompt_length :] * mask[TEXT.prompt_length :].astype(jnp.int32)
    exact, after = (jnp.all(answer == jnp.asarray(ANSWERS)[total + i]) for i in (0, 1))
    return paid[0] * exact + paid[1] * after


def likelihoods(lm: LanguageModel, params: Params) -> jax.Array:
    """Return the probabilities [100, 2] of the sum and of the number after it, to every prompt."""
    asked = prompts()

    def one(prompt: PaddedTokens, pair: jax.Array) -> jax.Array:
        answers = jnp.asarray(ANSWERS)[jnp.sum(pair) + jnp.arange(2)]
        real = (answers > 0).astype(jnp.float32)
        return jnp.exp(jnp.sum(completion_log_probs(lm, params, prompt, PaddedTokens(answers, real)), -1))

    return jax.vmap(one)(asked, jnp.asarray(PAIRS))
