"""Options behind a context: how likely a language model holds each; `option_rules.py` takes one.

score = make_option_scorer(lm)
items = [encode_choices(tokenizer, "Is the sky blue? Answer:", [" yes", " no"])]
print([scores.log_prob for scores in score(params, items)])

A context is read once for all of its options, which stand behind it in one row; what all items begin with is
read once for all of them (`share_prefix`). Logits exist only where an option's token is predicted, a block of
places at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.checks import check_counts, check_tokens
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.nets.transformer import SHARED, LanguageModel
from jaxrl_align.text.completion import bucket_length
from jaxrl_align.text.shared_prompt import count_virtual_tokens, read_shared_tokens
from jaxrl_align.types import Params

BATCH_TOKENS = 8192
"""Tokens of a batch at most, unless a single row has more."""
BLOCK_LOGITS = 2**24
"""Numbers in a block of logits at most."""
ROW_OPTIONS = 512
"""Tokens of options in a row at most, unless one option has more: attention grows with their square."""


class Choices(NamedTuple):
    """An item as tokens."""

    context: tuple[int, ...]
    """What stands before every option."""
    options: tuple[tuple[int, ...], ...]
    """K, each with at least one token."""


class OptionScores(NamedTuple):
    """What a language model gives to an item's K options."""

    log_prob: np.ndarray
    """[K] nats of each option's tokens given the context, summed."""
    greedy: np.ndarray
    """[K] bool, whether greedy decoding would write the option."""


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], *, marked: bool = False
) -> list[tuple[list[int], list[int]]]:
    """Return the tokens of contexts and of the texts that continue them.

    The two are tokenised together and split behind the context's tokens; spaces at the context's end belong
    to what follows, since most vocabularies have words with the space before them. Where a token would reach
    over the border, the two are tokenised apart, so that no letter counts to the wrong side. Before an empty
    context stands the tokenizer's start token.

    Args:
      tokenizer: puts its own tokens, such as a BOS, before a context, unless the context spells it already
        and `marked` says that this counts.
      pairs: contexts and continuations.
      marked: a special token that a text spells is one; for what a chat template wrote.

    Raises:
      ValueError: for an empty context without a token to start it.
    """
    moved = [(c.rstrip(), c[len(c.rstrip()) :] + text) for c, text in pairs]
    contexts = sorted({context for context, _ in moved if context})
    ids = dict(zip(contexts, encode_once(tokenizer, contexts, marked), strict=True))
    joined = iter(encode_once(tokenizer, [c + text for c, text in moved if c], marked))
    found = []
    for context, text in moved:
        whole = next(joined) if context else None
        before = ids[context] if context else _start(tokenizer)
        if whole is not None and whole[: len(before)] == before:
            after = whole[len(before) :]
        else:
            after = tokenizer.encode(text, special=False, marked=marked)
            after = after[1:] if not context and after[:1] == before else after
        found.append((before, after))
    return found


def encode_once(tokenizer: Tokenizer, texts: Sequence[str], marked: bool) -> list[list[int]]:
    """Return the tokens of texts; the tokenizer's start token stands before each at most once."""
    rows = tokenizer.encode_batch(texts, marked=marked)
    start = [tokenizer.start_token]
    if tokenizer.encode("")[:1] != start:
        return rows
    return [row[1:] if row[:2] == start * 2 else row for row in rows]


def _start(tokenizer: Tokenizer) -> list[int]:
    if tokenizer.start_token is None:
        raise ValueError("an empty context needs a token to start it; the tokenizer has no BOS and no EOS")
    return [tokenizer.start_token]


def encode_choices(
    tokenizer: Tokenizer, context: str, options: Sequence[str], *, marked: bool = False
) -> Choices:
    """Return an item as tokens, context and each option tokenised together; see `encode_pairs`.

    Args:
      tokenizer: the model's.
      context: may be empty.
      options: at least one; the space between context and option belongs to the option.
      marked: as `encode_pairs`'.

    Raises:
      ValueError: for no options, an option without tokens, or two options alike.
    """
    if not options:
        raise ValueError(f"an item must have at least one option; got none behind {context[-40:]!r}")
    pairs = encode_pairs(tokenizer, [(context, option) for option in options], marked=marked)
    found = tuple(tuple(ids) for _, ids in pairs)
    for i, ids in enumerate(found):
        if not ids or not options[i]:
            raise ValueError(f"every option must have a token; got {options[i]!r}; write it out")
        if (first := found.index(ids)) < i:
            raise ValueError(
                f"options must differ; got {options[first]!r} and {options[i]!r}, the same tokens; remove one"
            )
    return Choices(tuple(pairs[0][0]), found)


def share_prefix(items: Sequence[Choices], multiple: int = 16) -> tuple[tuple[int, ...], list[Choices]]:
    """Return the tokens that all contexts begin with, and the items without them.

    Args:
      items: whole contexts.
      multiple: of this many tokens, rounded down, so that many prefixes share few programs. Every context
        keeps a token.
    """
    contexts = [item.context for item in items]
    least, most = min(contexts, default=()), max(contexts, default=())
    alike = next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), len(least))
    shortest = min(map(len, contexts), default=1)
    count = min(alike, shortest - 1) // multiple * multiple if shortest else 0
    return least[:count], [item._replace(context=item.context[count:]) for item in items]


class _Row(NamedTuple):
    """A context and some of its options, as they are read: no option's last token."""

    item: int
    first: int
    """Index of its first option."""
    tokens: list[int]
    segments: list[int]
    places: list[int]
    """[S] where tokens are predicted: the context's end, then within each option."""
    targets: list[list[int]]
    """[S] which tokens: every option's first, then one each."""

    @property
    def packed(self) -> bool:
        """Whether several options stand side by side."""
        return self.segments[-1] > 0


def _make_rows(index: int, item: Choices) -> Iterator[_Row]:
    """Lay out one item, in several rows where its options are many."""
    start = 0
    while start < len(item.options):
        end, length = start, 0
        while end < len(item.options) and (end == start or length + len(item.options[end]) <= ROW_OPTIONS):
            length += len(item.options[end])
            end += 1
        tokens, segments = list(item.context), [SHARED] * len(item.context)
        places = [len(tokens) - 1]
        targets = [[option[0] for option in item.options[start:end]]]
        for i, option in enumerate(item.options[start:end]):
            places += range(len(tokens), len(tokens) + len(option) - 1)
            targets += [[token] for token in option[1:]]
            tokens += option[:-1]
            segments += [i] * (len(option) - 1)
        yield _Row(index, start, tokens, segments, places, targets)
        start = end


def make_option_scorer(lm: LanguageModel, *, batch_size: int = 32) -> Callable[..., list[OptionScores]]:
    """Return `(params, items, prefix=()) -> scores`, an `OptionScores` for each item, in order.

    Scores depend neither on the batch nor on what an item is scored with, but for rounding. Rows are sorted
    by length and padded to few lengths, so that few programs are compiled.

    Args:
      lm: the language model.
      batch_size: rows at a time, mostly items; fewer where they are long (`BATCH_TOKENS`).

    Returns:
      A function of parameters, which it does not change; of items, `Choices` of any lengths; and of tokens
      that stand before every context, read once for all items (`share_prefix` finds them). It raises
      ValueError for an item without an option or a context, an option without tokens, one that does not fit
      the context, or a token outside the vocabulary.

    Raises:
      ValueError: for a batch size below 1.
    """
    check_counts(batch_size=batch_size)
    read_prefix = jax.jit(lambda params, tokens: read_shared_tokens(lm, params, tokens))
    program = jax.jit(lambda *batch: _score_places(lm, *batch))

    def score(params: Params, items: Sequence[Choices], prefix: Sequence[int] = ()) -> list[OptionScores]:
        if len(prefix) and not all(item.context for item in items):
            # A token is predicted where the one before it was read.
            prefix, last = prefix[:-1], tuple(prefix[-1:])
            items = [item._replace(context=last + item.context) for item in items]
        room = lm.config.context - count_virtual_tokens(params) - len(prefix)
        _check_items(items, room, lm.config.context)
        check_tokens("tokens of the prefix", prefix or [0], lm.config.vocab_size)
        if len(prefix):
            params = read_prefix(params, jnp.asarray(prefix, jnp.int32))
        rows = [row for i, item in enumerate(items) for row in _make_rows(i, item)]
        found = [
            OptionScores(np.zeros(len(item.options)), np.ones(len(item.options), bool)) for item in items
        ]
        for batch in _make_batches(rows, batch_size):
            arrays = _lay_out(batch, batch_size, room, lm.config.vocab_size)
            check_tokens("tokens of items", arrays[0], lm.config.vocab_size)
            check_tokens("tokens of items", arrays[-1], lm.config.vocab_size)
            log_prob, best = map(np.asarray, program(params, *arrays))
            _collect(batch, log_prob, best, found)
        return found

    return score


def _check_items(items: Sequence[Choices], room: int, context: int) -> None:
    """Check items against what the context leaves behind all that they share."""
    for i, item in enumerate(items):
        if not item.context or not item.options or not all(item.options):
            raise ValueError(
                f"item {i} must have a context, options and a token in each; got {len(item.context)} tokens "
                f"and options of {[len(option) for option in item.options]}; see encode_choices"
            )
        # The last token is predicted, never read.
        length = len(item.context) + max(map(len, item.options)) - 1
        if length > room:
            shared = f" behind {context - room} shared tokens" if room < context else ""
            raise ValueError(
                f"item {i} must fit the context of {context} tokens; got {length}{shared}; shorten it, or "
                "leave examples out"
            )


def _make_batches(rows: Sequence[_Row], batch_size: int) -> Iterator[list[_Row]]:
    """Yield rows of like length, the longest first, and packed ones apart."""
    for packed in (True, False):
        kind = sorted((row for row in rows if row.packed == packed), key=lambda row: -len(row.tokens))
        while kind:
            size = min(batch_size, max(1, BATCH_TOKENS // len(kind[0].tokens)))
            yield kind[:size]
            kind = kind[size:]


def _lay_out(batch: Sequence[_Row], batch_size: int, room: int, vocab_size: int) -> tuple[Any, ...]:
    """Return a batch's tokens, what is real and segments [B, L], its places [S] and targets [S, K]."""
    count = min(batch_size, bucket_length(len(batch), 1))
    packed, length = batch[0].packed, bucket_length(len(batch[0].tokens), 8, steps=4)
    length = length if packed else min(length, room)
    tokens = np.zeros((count, length), np.int32)
    segments, real = np.zeros_like(tokens), np.zeros(tokens.shape, np.float32)
    for i, row in enumerate(batch):
        end = len(row.tokens)
        tokens[i, :end], segments[i, :end], real[i, :end] = row.tokens, row.segments, 1.0
    flat = [i * length + place for i, row in enumerate(batch) for place in row.places]
    wanted = [targets for row in batch for targets in row.targets]
    block = block_size(vocab_size)
    size = bucket_length(len(flat), 8, steps=2)
    size = -(-size // block) * block if size > block else size
    places = np.zeros(size, np.int32)
    targets = np.zeros((size, bucket_length(max(map(len, wanted)), 1)), np.int32)
    places[: len(flat)] = flat
    for i, own in enumerate(wanted):
        targets[i, : len(own)] = own
    # Without options side by side, padding behind the tokens is out of their sight anyway.
    return tokens, real if packed else None, segments if packed else None, places, targets


def block_size(vocab_size: int) -> int:
    """Return how many places have their logits computed together, a power of two."""
    return 1 << max(BLOCK_LOGITS // vocab_size, 1).bit_length() - 1


def _score_places(
    lm: LanguageModel,
    params: Params,
    tokens: jax.Array,
    real: jax.Array | None,
    segments: jax.Array | None,
    places: jax.Array,
    targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return the log-probability of every target [S, K] at its place in the batch, and the likeliest [S]."""
    encode = lambda row, mask, segment: lm.encode(params, row, mask, segments=segment)[0]
    hidden = jax.vmap(encode)(tokens, real, segments)
    hidden = hidden.reshape(-1, hidden.shape[-1])[places]

    def read(block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = lm.logits(params, block[0])
        picked = jnp.take_along_axis(logits, block[1], axis=-1)
        return picked - jax.nn.logsumexp(logits, axis=-1, keepdims=True), jnp.argmax(logits, -1)

    block = block_size(lm.config.vocab_size)
    if places.shape[0] <= block:
        return read((hidden, targets))
    blocks = jax.tree.map(lambda x: x.reshape(-1, block, *x.shape[1:]), (hidden, targets))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.map(read, blocks))


def _collect(
    batch: Sequence[_Row], log_prob: np.ndarray, best: np.ndarray, found: Sequence[OptionScores]
) -> None:
    """Add up a batch's tokens, option by option, in float64."""
    start = 0
    for row in batch:
        scores, count = found[row.item], len(row.targets[0])
        own = slice(row.first, row.first + count)
        scores.log_prob[own] = log_prob[start, :count]
        scores.greedy[own] = best[start] == row.targets[0]
        for i, place in enumerate(row.places[1:], start + 1):
            option = row.first + row.segments[place]
            scores.log_prob[option] += log_prob[i, 0]
            scores.greedy[option] &= best[i] == row.targets[i - start][0]
        start += len(row.places)
