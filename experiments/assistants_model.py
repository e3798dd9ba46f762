"""The published model of `assistants.py`: the same weights in their chat template, and on the bare prompt."""

from collections.abc import Sequence
from typing import Any

import jax
from assistants_rules import Written
from published import load_published

from jaxrl_align.text.completion import make_completer
from jaxrl_align.text.generation import Filters

BARE, LINE, TEMPLATE = "bare prompt", "bare prompt and line break", "chat template"
BATCH = 16
"""Prompts that are answered together."""
END_OF_DOCUMENT = "<|endoftext|>"
"""Ends a text in pre-training, where the tokenizer has it."""


def write_published(config: Any, prompts: Sequence[str]) -> dict[str, list[Written]]:
    """Return what the model writes to each prompt, greedily, bare and in its chat template.

    Raises:
      ValueError: for a model without a tokenizer, a stop token or a chat template.
    """
    model = load_published(config.model)
    tokenizer = model.tokenizer
    if tokenizer.chat_template is None or not model.stop_tokens:
        raise ValueError(
            "the published model must have a chat template and a stop token; name another, --model"
        )
    end = tokenizer.special_token(END_OF_DOCUMENT)
    complete = make_completer(
        model.lm,
        response_length=config.model_tokens,
        stop_tokens=[*model.stop_tokens, *([] if end is None else [end])],
        filters=Filters(top_k=1),
    )
    asked = lambda prompt: [{"role": "user", "content": prompt}]
    encode = {
        BARE: tokenizer.encode,
        LINE: lambda prompt: tokenizer.encode(f"{prompt}\n"),
        TEMPLATE: lambda prompt: tokenizer.encode_chat(asked(prompt), add_generation_prompt=True),
    }

    def write(rows: list[list[int]]) -> list[Written]:
        found = []
        for first in range(0, len(rows), BATCH):
            part = rows[first : first + BATCH]
            # The last batch is filled up, so that it needs no program of its own.
            filled = part + part[:1] * (min(BATCH, len(rows)) - len(part))
            found += complete(model.params, filled, jax.random.key(0))[: len(part)]
        return [Written(tokenizer.decode(c.tokens), c.stopped) for c in found]

    return {way: write([ids(prompt) for prompt in prompts]) for way, ids in encode.items()}


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("assistants")
