"""Completes a prompt by a published model, or answers it in the words of its chat template.

    python experiments/complete.py --model FOLDER --prompt "Once upon a time" --stream

FOLDER is a local Hugging Face folder of a model that `load_model` reads, with its `tokenizer.json`. With
`--stream` the text appears as it is written; without, one compiled program writes all samples side by side.
"""

import math
import time
from dataclasses import dataclass

import jax

from jaxrl_align import nets, text
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.huggingface import Pretrained, load_model


@dataclass(frozen=True)
class Config:
    """A model, a prompt, and how the model's distribution is sampled."""

    model: str
    """A Hugging Face folder."""
    prompt: str
    """The text that is gone on with, or answered."""
    chat: bool = False
    """The prompt is the user's message in a conversation, written by the model's chat template."""
    stream: bool = False
    """Print one sample, every token as it is written."""
    samples: int = 1
    """How many texts are written."""
    tokens: int = 64
    """The most that are written."""
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest token."""
    top_k: int | None = None
    """Sample among the k likeliest tokens; 1 is greedy."""
    top_p: float = 1.0
    """Only the likeliest tokens that make up this share are drawn; 1 draws from all."""
    min_p: float = 0.0
    """Only tokens at least this times as likely as the likeliest are drawn; 0 draws from all."""
    repetition_penalty: float = 1.0
    """Tokens that are there already become less likely by this factor; 1 changes nothing."""
    seed: int = 0
    """Of the draws."""
    mesh: str | None = None
    """Devices among which the model is divided: "model=4", "fsdp=4" or "auto"."""


def main(config: Config) -> None:
    """Load, encode, write."""
    model = load_model(config.model)
    if model.tokenizer is None:
        raise ValueError(f"{config.model} holds no tokenizer.json, without which a prompt cannot be read")
    if config.samples < 1 or (config.stream and config.samples > 1):
        raise ValueError(f"samples must be at least 1, and 1 with --stream; got {config.samples}")
    tokenizer, lm = model.tokenizer, nets.make_transformer(model.config)
    if config.chat:
        message = [{"role": "user", "content": config.prompt}]
        prompt = tokenizer.encode_chat(message, add_generation_prompt=True)
    else:
        prompt = tokenizer.encode(config.prompt)
    begin = time.perf_counter()
    count = write(config, model, lm, prompt)
    seconds = time.perf_counter() - begin
    print(f"[{count} tokens in {seconds:.1f} s, compilation included; seed {config.seed}]")


def write(config: Config, model: Pretrained, lm: nets.LanguageModel, prompt: list[int]) -> int:
    """Print the samples and return how many tokens they have."""
    if not model.stop_tokens:
        raise ValueError(
            f"{config.model} names no token that ends a text; set eos_token_id in its config.json"
        )
    pad_token = model.tokenizer.pad_token
    settings = {
        "response_length": config.tokens,
        "stop_tokens": model.stop_tokens,
        "pad_token": None if pad_token in model.stop_tokens else pad_token,
        "filters": text.Filters(config.top_k, config.top_p, config.min_p, config.repetition_penalty),
    }
    key = jax.random.key(config.seed)
    if config.stream:
        tokens = text.stream(lm, model.params, prompt, key, temperature=config.temperature, **settings)
        count = 0
        for count, piece in enumerate(text.as_written(model.tokenizer.decode, tokens)):  # noqa: B007
            print(piece, end="", flush=True)
        print()
        return count
    complete = text.make_completer(lm, **settings)
    completions = complete(model.params, [prompt] * config.samples, key, config.temperature)
    for number, completion in enumerate(completions, 1):
        perplexity = math.exp(-sum(completion.log_prob) / max(len(completion.log_prob), 1))
        end = "stopped" if completion.stopped else "cut"
        print(f"--- sample {number}, {end}, perplexity as sampled {perplexity:.1f}")
        print(model.tokenizer.decode(completion.tokens))
    return sum(len(completion.tokens) for completion in completions)


if __name__ == "__main__":
    cli.main(Config, main)
