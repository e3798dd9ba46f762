"""Prompts and demonstrations cut from sentences: the first words ask, the rest of the sentence answers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxrl_align.data.tokens.padding import left_pad, right_pad
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.types import PaddedTokens


class Demonstrations(NamedTuple):
    """Prompts and the responses shown for them."""

    prompt: PaddedTokens
    """[N, P], left-padded."""
    response: PaddedTokens
    """[N, T], right-padded, the stop token included."""


def cut_sentences(
    sentences: Sequence[str],
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    *,
    prompt_length: int,
    response_length: int,
    words: tuple[int, int] = (2, 4),
) -> Demonstrations:
    """Cut each sentence after its first few words; sentences that do not fit are left out.

    Args:
      sentences: whole sentences.
      tokenizer: gives the ids; the stop token is put after each response.
      rng: draws after how many words to cut.
      prompt_length: P, the most tokens of a prompt.
      response_length: T, the most tokens of a response, the stop token included.
      words: the fewest and the most words of a prompt.

    Raises:
      ValueError: if no sentence fits, or the tokenizer lacks a padding or a stop token.
    """
    prompts, responses = [], []
    pad_token, stop_token = tokenizer.pad_token, tokenizer.stop_token
    if pad_token is None or stop_token is None:
        raise ValueError(
            f"the tokenizer must have pad and stop tokens; got {pad_token} and {stop_token}; name them, "
            "load_tokenizer(folder, pad_token=..., stop_token=...): one token may be both"
        )
    for sentence in sentences:
        parts = sentence.split(" ")
        cut = int(rng.integers(words[0], words[1], endpoint=True))
        if len(parts) <= cut:
            continue
        prompt = tokenizer.encode(" ".join(parts[:cut]))
        response = [*tokenizer.encode(" " + " ".join(parts[cut:]), special=False), stop_token]
        if len(prompt) <= prompt_length and len(response) <= response_length:
            prompts.append(prompt)
            responses.append(response)
    if not prompts:
        raise ValueError(
            f"no sentence of the corpus fits prompt_length={prompt_length} and "
            f"response_length={response_length}; allow more tokens or give more text"
        )
    return Demonstrations(
        left_pad(prompts, prompt_length, pad_token),
        right_pad(responses, response_length, pad_token),
    )
