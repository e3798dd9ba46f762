"""Tokenizers that are made here: byte pairs learnt from texts, single bytes, single characters."""

from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxrl_align.data.tokens.tokenizers import PAD, STOP, Tokenizer


def train_bpe(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level byte-pair vocabulary (Sennrich et al. 2016, arXiv:1508.07909) from texts.

    Args:
      texts: what to learn from; the same texts give the same tokenizer.
      vocab_size: at least 258: 256 bytes, padding and stop.

    Raises:
      ValueError: for an empty corpus, a vocabulary below 258, or one that the corpus cannot fill.
    """
    if not any(text.strip() for text in texts):
        raise ValueError("the corpus is empty: a tokenizer needs text to learn from; give a file with text")
    if vocab_size < 258:
        raise ValueError(f"vocab_size must be at least 258 (256 bytes, padding, stop); got {vocab_size}")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, STOP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() < vocab_size:
        raise ValueError(
            f"the corpus fills a vocabulary of {backend.get_vocab_size()}; got vocab_size={vocab_size}; "
            "ask for less or give more text"
        )
    return Tokenizer(backend)


def byte_tokenizer() -> Tokenizer:
    """Return the tokenizer of single bytes: 258 tokens, nothing to learn, no text unknown."""
    backend = _single_tokens(pre_tokenizers.ByteLevel.alphabet(), unknown=None)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


def character_tokenizer(text: str) -> Tokenizer:
    """Return the tokenizer whose tokens are the characters of a text, in the order of their code points.

    Args:
      text: has every character that will be encoded; encoding any other raises a `ValueError`.

    Raises:
      ValueError: for an empty text.
    """
    if not text:
        raise ValueError("the text is empty: its characters are the vocabulary; give a file with text")
    backend = _single_tokens(set(text), unknown=PAD)
    backend.decoder = decoders.Fuse()
    return Tokenizer(backend)


def _single_tokens(characters: Iterable[str], unknown: str | None) -> tokenizers.Tokenizer:
    vocab = {PAD: 0, STOP: 1} | {character: 2 + i for i, character in enumerate(sorted(characters))}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token=unknown))
    backend.add_special_tokens([PAD, STOP])
    return backend
