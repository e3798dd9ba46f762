"""Scoring multiple-choice items beside transformers and lm-evaluation-harness, in turn in one run, float32.

An item is a context of 50 to 70 random words and 4 options of 6 to 10; the peers read the context again for
each option.

    tokens    `make_option_scorer` beside a loop over transformers' model in padded batches of like length
    texts     the harness's `loglikelihood` beside that of its Hugging Face backend, tokenizing included

Aims, in times the peer's rate: 1,000 items on GPT-2's layout (4 layers of 128, 4 heads, 256 tokens) 3 and 2;
on SmolLM2-135M 2 and 2.

What was measured is in docs/benchmarks.md: all four are reached. Compilation adds 5 s once, 7 s for SmolLM2.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

import jax
import peers
import text_peers
from contest import ContestConfig, contest, rivals, run

from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.evaluate.scoring.choices import Choices, make_option_scorer, share_prefix
from jaxrl_align.evaluate.scoring.text_requests import TextScorer
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.runtime.huggingface import Pretrained, find_model, load_model


@dataclass(frozen=True)
class Items:
    """Shape of the items, in tokens; two numbers are the least and the most."""

    count: int = 1000
    shared: int = 0
    """Before every context the same, as examples are."""
    context: tuple[int, int] = (50, 70)
    option: tuple[int, int] = (6, 10)
    options: int = 4


@dataclass(frozen=True)
class Config(ContestConfig):
    """GPT-2's layout in float32, and the real model."""

    items: Items = Items()
    vocab: int = 256
    width: int = 128
    layers: int = 4
    heads: int = 4
    context: int = 512
    real_items: int = 40
    """Scored by SmolLM2; 0 leaves it out."""
    batch: int = 32
    """Rows at a time, on every side."""
    peers: str = ""
    """An interpreter with lm-eval, transformers and torch; empty leaves them out."""
    threads: tuple[int, ...] = (2,)
    """Of torch; with several, a peer's better one in each round counts."""


def small_model(config: Config) -> Pretrained:
    """Return GPT-2's layout with a word for each token."""
    shape = TransformerConfig(config.vocab, config.width, config.layers, config.heads, config.context)
    params = jax.jit(make_transformer(shape).init)(jax.random.key(0))
    words = Tokenizer(text_peers.word_tokenizer(config.vocab), {"eos_token": "w00001"})
    return Pretrained(shape, params, (1,), words)


def our_rounds(config: Config, model: Pretrained, drawn: list[text_peers.Item]) -> list[peers.Round]:
    """Return the measurements from tokens and from texts, items a second."""
    lm = make_transformer(model.config)
    score = make_option_scorer(lm, batch_size=config.batch)
    items = [Choices(tuple(context), tuple(map(tuple, options))) for context, options in drawn]
    scorer = TextScorer(lm, model.params, model.tokenizer, model.stop_tokens, batch_size=config.batch)
    pairs = text_peers.as_texts(model.tokenizer.decode, drawn)

    def from_tokens() -> float:
        begin = time.perf_counter()
        prefix, rest = share_prefix(items)
        score(model.params, rest, prefix)
        return len(drawn) / (time.perf_counter() - begin)

    def from_texts() -> float:
        begin = time.perf_counter()
        scorer.score_pairs(pairs)
        return len(drawn) / (time.perf_counter() - begin)

    for measure in (from_tokens, from_texts):
        begin = time.perf_counter()
        measure()
        print(f"  the first time, with compilation: {time.perf_counter() - begin:.1f} s")
    return [from_tokens, from_texts]


def compare(config: Config, name: str, model: Pretrained, shape: dict[str, int] | str, count: int) -> None:
    """Measure ours beside each peer, in turn."""
    settings: dict[str, Any] = asdict(config.items) | {"count": count}
    drawn = text_peers.draw_items(text_peers.plain_words(shape), **settings)
    what = f"{count:,} items of {config.items.options} options, {name},"
    ours = our_rounds(config, model, drawn)
    settings = {"model": shape, "items": settings, "batch": config.batch, "threads": config.threads}
    libraries = {"transformers_choices": "transformers", "lm_eval_choices": "lm-eval"}
    for (peer, library), source, measure in zip(libraries.items(), ("tokens", "texts"), ours, strict=True):
        with rivals(config.peers, peer, name=library, **settings) as others:
            contest(f"{what} from {source}", "items/s", {"ours": measure} | others, config.rounds)


def main(config: Config) -> None:
    """Measure the small model, then the real one."""
    shape = {name: getattr(config, name) for name in ("vocab", "width", "layers", "heads", "context")}
    compare(config, "GPT-2's layout", small_model(config), shape, config.items.count)
    if config.real_items:
        folder = find_model()
        compare(config, "SmolLM2-135M", load_model(folder), str(folder), config.real_items)


if __name__ == "__main__":
    run(Config, main)
