"""The sums of `non_differentiable.py`: a tiny model, shown what demonstrators wrote, right or not.

A prompt is "a+b=" of two digits; an answer is a number of up to two digits and the stop token. Two kinds of
demonstrators: *guessers* write the sum and the 18 numbers after it equally often, so that one answer in 19 is
right; *rivals* write the sum and the number after it, equally often.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.nets.transformer import LanguageModel, TransformerConfig, make_transformer
from jaxrl_align.text.generation import TextConfig
from jaxrl_align.text.shared_prompt import completion_log_probs
from jaxrl_align.types import PaddedTokens, Params, Sampler, TokenBatch

STOP, PLUS, EQUALS, VOCAB = 1, 12, 13, 14
"""Padding is 0, the digits are 2 to 11."""
TEXT = TextConfig(prompt_length=4, response_length=3, stop_token=STOP, missing_stop="keep")
SPREADS = {"exact": 19, "rivals": 2}
"""Task -> how many numbers its demonstrators write, from the sum on."""
CHOICES = 38
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


ANSWERS = np.array([write_number(number) for number in range(37)], np.int32)
"""[37, T] of the numbers from 0 to 36."""
PAIRS = np.array([(a, b) for a in range(10) for b in range(10)], np.int32)
"""[100, 2]."""


def prompts() -> PaddedTokens:
    """Return all prompts [100, P]."""
    a, b = PAIRS.T + 2
    tokens = np.stack([a, np.full_like(a, PLUS), b, np.full_like(a, EQUALS)], 1)
    return PaddedTokens(jnp.asarray(tokens), jnp.ones(tokens.shape))


def demonstrations(spread: int) -> TokenBatch:
    """Return what demonstrators of a spread wrote, leaves [100, CHOICES, P + T], neighbours side by side."""
    answers = ANSWERS[PAIRS.sum(1)[:, None] + np.arange(CHOICES)[None] % spread]
    asked = np.repeat(np.asarray(prompts().tokens)[:, None], CHOICES, 1)
    tokens = np.concatenate([asked, answers], -1)
    real = (tokens > 0).astype(np.float32)
    predict = real * (np.arange(tokens.shape[-1]) >= TEXT.prompt_length)
    return TokenBatch(jnp.asarray(tokens), jnp.asarray(real), jnp.asarray(predict, jnp.float32))


def sample_pairs(data: TokenBatch, *, batch_size: int) -> Sampler:
    """Return a sampler of demonstrations, two neighbours of each prompt: every batch balances rivals."""

    def sample(key: chex.PRNGKey) -> TokenBatch:
        key_prompt, key_choice = jax.random.split(key)
        prompt = jax.random.randint(key_prompt, (batch_size // 2,), 0, len(PAIRS))
        choice = 2 * jax.random.randint(key_choice, (batch_size // 2,), 0, CHOICES // 2)
        places = jnp.tile(prompt, 2), jnp.concatenate([choice, choice + 1])
        return jax.tree.map(lambda x: x[places], data)

    return sample


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


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("non_differentiable")
