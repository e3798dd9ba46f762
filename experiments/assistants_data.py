"""The instructions of `assistants.py`: their split, and what models are pre-trained and fine-tuned on."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from mixture import INSTRUCTIONS

from jaxrl_align.data.books import childrens_books
from jaxrl_align.data.files import find_file
from jaxrl_align.data.tokens.padding import left_pad, right_pad
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.data.tokens.vocabularies import train_bpe
from jaxrl_align.types import Comparisons, PaddedTokens

TEST, VALIDATION = 200, 100
"""Pairs that are held out: to report on, and to choose rates on."""
LIST = 8
"""Instructions of a list, one a line."""
COPIES = 20
"""Times that the training instructions are drawn into lists, each time in another order."""


class Pair(NamedTuple):
    """An instruction and a human's answer."""

    prompt: str
    """The instruction and its input, on one line."""
    answer: str


class Split(NamedTuple):
    """Pairs of which no prompt stands in two parts."""

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]


def read_pairs() -> list[Pair]:
    """Return the 1,100 pairs of the file, in its order."""
    rows = json.loads(find_file(INSTRUCTIONS).read_text(encoding="utf-8"))
    line = lambda row: " ".join(f"{row['instruction']} {row['input']}".split())
    return [Pair(line(row), row["output"].strip()) for row in rows]


def split_pairs(pairs: Sequence[Pair]) -> Split:
    """Hold pairs out, always the same; training goes without the prompts that are."""
    order = np.random.default_rng(0).permutation(len(pairs))
    drawn = [pairs[i] for i in order]
    test, rest = drawn[:TEST], drawn[TEST:]
    asked = {pair.prompt for pair in test}
    rest = [pair for pair in rest if pair.prompt not in asked]
    validation = rest[:VALIDATION]
    asked = {pair.prompt for pair in validation}
    return Split([pair for pair in rest[VALIDATION:] if pair.prompt not in asked], validation, test)


def make_lists(prompts: Sequence[str], seed: int = 0) -> list[str]:
    """Return documents of `LIST` instructions, one a line, without any answer."""
    rng = np.random.default_rng(seed)
    drawn = [prompts[i] for _ in range(COPIES) for i in rng.permutation(len(prompts))]
    return ["\n".join(drawn[i : i + LIST]) for i in range(0, len(drawn), LIST)]


class Texts(NamedTuple):
    """The tokenizer, and the texts that are pre-trained on, [N] tokens, a stop token behind each document."""

    tokenizer: Tokenizer
    books: Any
    lists: Any


def make_texts(split: Split, vocab_size: int, words: int) -> Texts:
    """Tokenise the children's books, `words` of each, and lists of the training instructions."""
    found = [book for author in childrens_books().values() for book in author.values()]
    books, lists = [" ".join(book[:words]) for book in found], make_lists([p.prompt for p in split.train])
    answers = [pair.answer for pair in split.train]
    tokenizer = train_bpe([*books, *lists[: -(-len(lists) // COPIES)], *answers], vocab_size)

    def stream(documents: list[str]) -> Any:
        rows = tokenizer.encode_batch(documents)
        return jnp.asarray([token for row in rows for token in [*row, tokenizer.stop_token]], jnp.int32)

    return Texts(tokenizer, stream(books), stream(lists))


class Rows(NamedTuple):
    """Prompts [N, P] and the human answers [N, T] to them."""

    prompt: PaddedTokens
    answer: PaddedTokens


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str], length: int) -> PaddedTokens:
    """Return prompts as documents that have just begun: a stop token, the line, a line break; [N, length].

    The longest lose their beginning.
    """
    rows = [[tokenizer.stop_token, *tokenizer.encode(f"{prompt}\n")][-length:] for prompt in prompts]
    return left_pad(rows, length, tokenizer.pad_token)  # type: ignore[arg-type]


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[Pair], prompt: int, answer: int) -> Rows:
    """Return pairs as rows of `prompt` and `answer` tokens; longer answers are left out."""
    ends = [[*tokenizer.encode(pair.answer), tokenizer.stop_token] for pair in pairs]
    fit = [(pair.prompt, end) for pair, end in zip(pairs, ends, strict=True) if len(end) <= answer]
    prompts, answers = zip(*fit, strict=True)
    padded = right_pad(answers, answer, tokenizer.pad_token)  # type: ignore[arg-type]
    return Rows(encode_prompts(tokenizer, prompts, prompt), padded)


def prefer_humans(rows: Rows, *written: PaddedTokens) -> Comparisons:
    """Return comparisons of each human answer with what models wrote to the same prompt.

    Args:
      rows: N.
      written: of each of K models, [N, T].

    Returns:
      K N comparisons; the human answer is the better one in all.
    """
    join = lambda *x: jnp.concatenate([jnp.asarray(y) for y in x])
    tile = lambda text: PaddedTokens(*(join(*[x] * len(written)) for x in text))
    rejected = PaddedTokens(*(join(*x) for x in zip(*written, strict=True)))
    return Comparisons(tile(rows.prompt), tile(rows.answer), rejected)


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("assistants")
