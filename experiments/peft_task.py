"""The tasks of `peft.py` as rows whose last token names the class, and the models that are tuned to them.

A row is `<stop> text It was good`: only its last token is predicted, by the model's own head, so that every
way of tuning trains its own leaves and nothing else, and all train by `make_lm_learner`. The class that is
answered is the one whose word's first token is likeliest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.data.books import childrens_books, hold_out_first
from jaxrl_align.data.corpora import read_text
from jaxrl_align.data.labelled_texts import Labelled, LabelledSplits, load_sst2, load_trec
from jaxrl_align.data.tokens.padding import right_pad
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.data.tokens.vocabularies import train_bpe
from jaxrl_align.learner import make_optimizer
from jaxrl_align.nets.transformer import LanguageModel, TransformerConfig, make_transformer
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner, sample_windows
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.huggingface import load_model, save_model
from jaxrl_align.runtime.members import MembersConfig, train_members
from jaxrl_align.types import Params, TokenBatch


@dataclass(frozen=True)
class BaseConfig(MembersConfig):
    """What is tuned: a small model that is pre-trained here."""

    seeds: int = 4
    """Of the tuning; all start from one model."""
    base: str | None = None
    """The folder of an earlier run, whose model is tuned; none pre-trains one."""
    text: str | None = None
    """A UTF-8 text file to pre-train on, its last tenth held out; none means the children's books, of which
    each author's first is held out, from the data folder or the network."""
    held_out_tokens: int = 4_096
    """Of other text, by which forgetting is measured."""
    vocabulary: int = 1024
    """Tokens of the vocabulary, at most."""
    layers: int = 2
    """Of the transformer."""
    heads: int = 4
    """Attention heads of a layer."""
    width: int = 64
    """Numbers in a token's hidden state."""
    context: int = 128
    """Tokens that the model reads at most."""
    pretrain_steps: int = 1_500
    """Updates of the pre-training."""
    pretrain_batch: int = 8
    """Windows of text in an update of the pre-training."""
    pretrain_rate: float = 3e-3
    """After a linear rise it falls linearly to 0."""


class Wording(NamedTuple):
    """How a task is put into words."""

    load: Callable[[], LabelledSplits]
    ending: str
    words: tuple[str, ...]
    """Of each class; their first tokens must differ."""


WORDINGS = {
    "sst2": Wording(load_sst2, " It was", (" bad", " good")),
    "trec": Wording(
        load_trec, " It asks for a", (" way", " thing", " letter", " person", " place", " number")
    ),
}


class Task(NamedTuple):
    """Rows whose last real token is a class's, and the classes' tokens."""

    words: jax.Array
    """[C] int32."""
    train: TokenBatch
    validation: TokenBatch
    test: TokenBatch


class Base(NamedTuple):
    """A pre-trained model."""

    lm: LanguageModel
    params: Params
    in_turn: bool
    """It is so large that it is tuned by one member after the other instead of all side by side."""
    tokenizer: Tokenizer
    held_out: np.ndarray
    """Tokens [N] of text like what it was pre-trained on, and no part of it."""


def make_task(name: str, tokenizer: Tokenizer, length: int, rows: tuple[int, int]) -> Task:
    """Return a task's rows of at most `length` tokens, and no more than `rows` to validate and to test on.

    Raises:
      ValueError: for an unknown task, words whose first token is the same, or a length without room.
    """
    if name not in WORDINGS:
        raise ValueError(f"tasks must be among {', '.join(WORDINGS)}; got {name!r}")
    wording = WORDINGS[name]
    words = [ids[0] for ids in tokenizer.encode_batch(wording.words, special=False)]
    if len(set(words)) < len(words):
        raise ValueError(f"the words {wording.words} must begin with tokens of their own; got {words}")
    splits = wording.load()
    few = [_spread(part, n) for part, n in zip(splits[2:], rows, strict=True)]
    parts = [_rows(tokenizer, part, wording.ending, words, length) for part in (splits.train, *few)]
    return Task(jnp.array(words, jnp.int32), *parts)


def _spread(part: Labelled, number: int) -> Labelled:
    """Return so many rows at equal distances, since the files may be in the order of their labels."""
    index = np.linspace(0, len(part.texts) - 1, min(number, len(part.texts))).astype(int)
    return Labelled(tuple(part.texts[i] for i in index), tuple(part.labels[i] for i in index))


def _rows(tokenizer: Tokenizer, part: Labelled, ending: str, words: Sequence[int], length: int) -> TokenBatch:
    start, end = [tokenizer.stop_token], tokenizer.encode(ending, special=False)
    if (room := length - len(start) - len(end) - 1) < 1:
        raise ValueError(f"length must leave room for text beside {ending!r} and a word; got {length}")
    texts = tokenizer.encode_batch(part.texts, special=False)
    rows = [start + ids[:room] + end + [words[c]] for ids, c in zip(texts, part.labels, strict=True)]
    tokens, real = right_pad(rows, length, tokenizer.stop_token)
    last = np.arange(length)[None] == real.sum(1, keepdims=True) - 1
    return TokenBatch(jnp.asarray(tokens), jnp.asarray(real), jnp.asarray(last, jnp.float32))


def make_accuracy(lm: LanguageModel, words: jax.Array) -> Callable[[Params, TokenBatch], jax.Array]:
    """Return `(params, rows) -> []`, the share of rows whose own word is the likeliest of the words."""

    def hit(params: Params, row: TokenBatch) -> jax.Array:
        hidden, _ = lm.encode(params, row.tokens[:-1], row.real[:-1])
        last = jnp.sum(row.real).astype(jnp.int32) - 1
        logits = lm.logits(params, hidden[last - 1])[words]
        return words[jnp.argmax(logits)] == row.tokens[last]

    def accuracy(params: Params, rows: TokenBatch) -> jax.Array:
        return jnp.mean(jax.lax.map(lambda row: hit(params, row), rows, batch_size=50), dtype=jnp.float32)

    return accuracy


def read_texts(path: str | None) -> tuple[str, str]:
    """Return text to pre-train on and text held out: by whole books, or the last tenth of a file."""
    if path is not None:
        words = read_text(path).split()
        cut = len(words) * 9 // 10
        return " ".join(words[:cut]), " ".join(words[cut:])
    train, test, others = hold_out_first(childrens_books())
    join = lambda *parts: " ".join(" ".join(w) for p in parts for books in p.values() for w in books.values())
    return join(train, others), join(test)


def published_base(model: str, path: str | None, num_tokens: int) -> Base:
    """Return a model from a Hugging Face folder."""
    found = load_model(model)
    if found.tokenizer is None or found.tokenizer.stop_token is None:
        raise ValueError(f"{model} must hold a tokenizer.json with a stop token; without it no text is read")
    text = read_texts(path)[1]
    held_out = found.tokenizer.encode(text[: 20 * num_tokens], special=False)[:num_tokens]
    return Base(make_transformer(found.config), found.params, True, found.tokenizer, np.array(held_out))


def own_base(config: BaseConfig, folder: RunFolder) -> Base:
    """Return a small model, pre-trained in this run or in the one whose folder is `config.base`.

    Args:
      config: names the folder, or the text and the model's shape.
      folder: of the run; the model becomes the folder `base` in it.
    """
    place = (folder.path if config.base is None else Path(config.base)) / "base"
    text, held_out = read_texts(config.text)
    if config.base is None and not place.exists():
        tokenizer = train_bpe([text], config.vocabulary)
        shape = (config.width, config.layers, config.heads, config.context)
        lm = make_transformer(TransformerConfig(tokenizer.vocab_size, *shape))
        tokens = jnp.asarray(tokenizer.encode(text), jnp.int32)
        params = jax.tree.map(lambda x: np.asarray(x[0]), _pretrain(config, lm, tokens, folder))
        save_model(place, lm.config, params, tokenizer=tokenizer, stop_tokens=[tokenizer.stop_token])
    found = load_model(place)
    tokenizer = found.tokenizer
    tokens = np.array(tokenizer.encode(held_out[: 20 * config.held_out_tokens])[: config.held_out_tokens])
    return Base(make_transformer(found.config), found.params, False, tokenizer, tokens)


def _pretrain(config: BaseConfig, lm: LanguageModel, tokens: jax.Array, folder: RunFolder) -> Params:
    steps = config.pretrain_steps
    read = steps * config.pretrain_batch * config.context
    print(f"pre-training one model on {len(tokens)} tokens, of which it reads {read}", flush=True)
    learner = make_lm_learner(
        lm,
        sample_windows(tokens, batch_size=config.pretrain_batch, length=config.context),
        total_steps=steps,
        warmup_steps=steps // 20,
        optimizer=make_optimizer(max_grad_norm=1.0, b2=0.99, eps=1e-8),
    )
    how: dict[str, Any] = {"folder": folder.sub("pretraining"), "label": "pre-training"}
    how["checkpoint_every"] = max(1, steps // 4)
    keys = config.keys()[:1]
    hparams = LMHParams(config.pretrain_rate)
    return train_members(learner, hparams, config, steps, keys=keys, **how).state.params


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("peft")
