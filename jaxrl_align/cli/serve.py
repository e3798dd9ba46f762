"""Commands that write with a model: completions of prompts, and a dialogue in the terminal."""

import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from tyro.conf import OmitArgPrefixes

from jaxrl_align import feedback
from jaxrl_align.atomic import atomic_path
from jaxrl_align.cli.bases import Base, load_base, pad_of
from jaxrl_align.cli.datasets import as_chat
from jaxrl_align.text import Completion, Filters, as_written, make_completer, make_streamer

LEAVE, FORGET = ("/quit", "/exit"), "/reset"


@dataclass(frozen=True)
class ReadOptions:
    """The model that writes."""

    model: str
    """A Hugging Face folder of a language model, or a PEFT folder of an adapter over one."""
    base: str | None = None
    """Where --model is an adapter: its base, if not where adapter_config.json says."""
    hub: bool = False
    """Take --model for a name on the Hugging Face hub, and download it (extra [hub])."""
    mesh: str | None = None
    """Devices among which the model is divided: "model=4", "fsdp=4" or "auto"."""


@dataclass(frozen=True)
class SampleOptions:
    """How the model's distribution is sampled."""

    tokens: int = 128
    """The most that are written."""
    temperature: float = 0.7
    """0 writes the likeliest words."""
    top_k: int | None = None
    """Sample among the k likeliest tokens."""
    top_p: float = 1.0
    """Sample among the likeliest tokens whose probabilities sum to p."""
    min_p: float = 0.0
    """Sample among the tokens at least this share as likely as the likeliest."""
    repetition_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Generate:
    """Complete prompts, given by hand or as rows {"prompt"} or {"messages"}."""

    source: OmitArgPrefixes[ReadOptions]
    how: OmitArgPrefixes[SampleOptions] = SampleOptions()
    prompt: str | None = None
    """A text to complete, in the place of --data."""
    data: str | None = None
    """A JSONL file of prompts."""
    chat: bool = False
    """Prompts that are plain texts are the user's turn in the model's chat template."""
    samples: int = 1
    """Completions of each prompt."""
    out: str | None = None
    """A JSONL file of prompts and completions; None prints them."""
    batch_size: int = 16
    """Completions that are written at once."""


@dataclass(frozen=True)
class Chat:
    """Talk with a model in the terminal: /reset forgets what was said, /quit or Ctrl-D leaves."""

    source: OmitArgPrefixes[ReadOptions]
    how: OmitArgPrefixes[SampleOptions] = SampleOptions(tokens=256)
    system: str | None = None
    """The system's message; None leaves it to the chat template."""


def sampling(how: SampleOptions, base: Base) -> tuple[dict[str, Any], float]:
    """Return the settings of a completer or streamer, and the temperature."""
    if not how.temperature >= 0:
        raise ValueError(f"--temperature must be at least 0; got {how.temperature}; 0 is greedy")
    greedy = how.temperature == 0
    pad = pad_of(base)
    settings = {
        "response_length": how.tokens,
        "stop_tokens": base.stop_tokens,
        "pad_token": None if pad in base.stop_tokens else pad,
        "filters": Filters(1 if greedy else how.top_k, how.top_p, how.min_p, how.repetition_penalty),
    }
    return settings, 1.0 if greedy else how.temperature


def run_generate(options: Generate, argv: Sequence[str]) -> None:
    """Complete prompts, in batches of one compiled program for each bucket of lengths."""
    if (options.prompt is None) == (options.data is None):
        raise ValueError("give --prompt TEXT or --data FILE, and not both")
    if options.samples < 1 or options.batch_size < 1:
        raise ValueError("--samples and --batch-size must be at least 1")
    begin = time.monotonic()
    if options.data is None:
        rows: list[Any] = [feedback.Question(options.prompt or "")]
    else:
        rows = list(feedback.read_prompts(options.data).rows)
    source = options.source
    base = load_base(source.model, base=source.base, hub=source.hub, fold=False)
    rows = as_chat(rows, options.chat)
    prompts = feedback.tokenise_prompts(base.tokenizer, rows)
    asked = [i for i in range(len(rows)) for _ in range(options.samples)]
    written = complete_all(base, options, [prompts[i] for i in asked])
    shown = list(zip([rows[i] for i in asked], written, strict=True))
    if options.out is None:
        for row, completion in shown:
            print_completion(base, row, completion)
    else:
        write_rows(options.out, [as_row(base, row, completion) for row, completion in shown])
    count = sum(len(completion.tokens) for completion in written)
    where = "" if options.out is None else f" in {options.out}"
    print(f"[{len(written)} completions of {count} tokens{where}; {time.monotonic() - begin:.1f} s]")


def complete_all(base: Base, options: Generate, prompts: Sequence[Sequence[int]]) -> list[Completion]:
    """Complete prompts batch by batch; the last batch is filled up, so that it shares the program."""
    settings, temperature = sampling(options.how, base)
    complete = make_completer(base.lm, **settings)
    size = min(options.batch_size, len(prompts))
    keys = jax.random.split(jax.random.key(options.how.seed), -(-len(prompts) // size))
    written: list[Completion] = []
    for i, key in enumerate(keys):
        batch = list(prompts[i * size : (i + 1) * size])
        filled = batch + batch[:1] * (size - len(batch))
        written += complete(base.params, filled, key, temperature)[: len(batch)]
    return written


def as_row(base: Base, row: feedback.Question, completion: Completion) -> dict[str, Any]:
    """Return a prompt and its completion as a row of JSON lines."""
    text = base.tokenizer.decode(completion.tokens)
    return {"prompt": row.prompt, **row.columns, "completion": text, "stopped": completion.stopped}


def print_completion(base: Base, row: feedback.Question, completion: Completion) -> None:
    """Print a prompt's last turn and its completion."""
    asked = row.prompt if isinstance(row.prompt, str) else str(row.prompt[-1].get("content"))
    nats = -sum(completion.log_prob) / max(len(completion.log_prob), 1)
    end = "stopped" if completion.stopped else "cut"
    print(f"--- {' '.join(asked.split())[-80:]} ({end}, perplexity as sampled {math.exp(nats):.1f})")
    print(base.tokenizer.decode(completion.tokens))


def write_rows(path: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines, whole or not at all."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def run_chat(options: Chat, argv: Sequence[str]) -> None:
    """Answer lines from standard input, a terminal's or a pipe's."""
    source = options.source
    base = load_base(source.model, base=source.base, hub=source.hub, fold=False)
    if base.tokenizer.chat_template is None:
        raise ValueError(f"{source.model} must have a chat template to talk; got none; take generate")
    settings, temperature = sampling(options.how, base)
    stream = make_streamer(base.lm, **settings)
    opening = [] if options.system is None else [{"role": "system", "content": options.system}]
    messages = list(opening)
    keys = jax.random.key(options.how.seed)
    print(f"{source.model}; {FORGET} forgets, {LEAVE[0]} leaves", flush=True)
    for said in read_turns():
        if said in LEAVE:
            break
        if said == FORGET:
            messages = list(opening)
            print("forgotten", flush=True)
            continue
        messages.append({"role": "user", "content": said})
        messages, prompt = fit_turns(base, messages, len(opening), options.how.tokens)
        keys, key = jax.random.split(keys)
        answer = ""
        for piece in as_written(base.tokenizer.decode, stream(base.params, prompt, key, temperature)):
            print(piece, end="", flush=True)
            answer += piece
        print(flush=True)
        messages.append({"role": "assistant", "content": answer})


def read_turns() -> Iterable[str]:
    """Yield the lines of standard input that are not blank, with a prompt where somebody types them."""
    typed = sys.stdin.isatty()
    while True:
        if typed:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def fit_turns(
    base: Base, messages: list[dict[str, str]], opening: int, tokens: int
) -> tuple[list[dict[str, str]], list[int]]:
    """Return a dialogue's tokens and its messages, without its oldest turns where the context is too short.

    Raises:
      ValueError: if the last turn alone does not fit.
    """
    room = base.config.context - tokens
    kept = list(messages)
    while True:
        prompt = base.tokenizer.encode_chat(kept, add_generation_prompt=True)
        if len(prompt) <= room:
            return kept, prompt
        if len(kept) <= opening + 1:
            raise ValueError(
                f"a turn and its answer must fit the context of {base.config.context} tokens; got "
                f"{len(prompt)} and --tokens {tokens}; say less, or allow fewer tokens"
            )
        print("[the oldest turns no longer fit the context and are forgotten]", flush=True)
        kept = kept[:opening] + kept[opening + 2 :]
