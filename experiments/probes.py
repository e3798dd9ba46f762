"""What predicting the next word teaches: minimal pairs of grammar, and the lecture's seven gaps.

A model that only predicts text is asked without training it further: of two texts it takes the likelier one.
BLiMP's pairs differ in one point of English grammar, 67 paradigms of 12 phenomena. The sum of
log-probabilities prefers the shorter sentence, so what counts is the gain over a reader who takes the one
with fewer tokens.

Small models of two widths read a third of the children's books, 0.75 million tokens, once, 4 and 16 times,
each with a learning rate that falls to 0 at its end; one rate was tried. Beside them stand the same models
before training and counts of three tokens in the same text. `--model FOLDER` asks a published model instead,
which read far more. The intervals are bootstrapped over the paradigms, since a further contrast is what one
would ask next; the mean of every seed stands beside them.

What grammar the small ones know may be habit: "that" is preferred to "wh" whether there is a gap or not, so
that one paradigm of filler-gap dependencies is won and its counterpart lost (see the best and the worst).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import probes_report as reports

from jaxrl_align import runtime
from jaxrl_align.data.blimp import Paradigm, load_blimp
from jaxrl_align.data.books import childrens_books
from jaxrl_align.data.corpora import read_text
from jaxrl_align.data.probes import CLOZE_PROBES
from jaxrl_align.data.tokens.packing import pack
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.data.tokens.vocabularies import train_bpe
from jaxrl_align.evaluate.scoring.likelihood import encode_texts, make_scorer, rank_of, share_preferred
from jaxrl_align.evaluate.scoring.ngrams import count_ngrams, ngram_log_probs
from jaxrl_align.learner import make_optimizer
from jaxrl_align.nets.transformer import LanguageModel, TransformerConfig, make_transformer
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner, packed_batch, sample_rows
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.huggingface import load_model
from jaxrl_align.text.completion import make_completer
from jaxrl_align.text.generation import Filters

CLAIM = runtime.Claim(
    "A model that only predicts text learns grammar: it finds the right one of two sentences likelier, more "
    "often than lengths or counts of three tokens do, and more so the longer it read and the wider it is.",
    rows=("C14",),
    minutes=140,
)
PUBLISHED = runtime.Claim(
    "A published model, which has read far more text, finds the right one of two sentences likelier, far "
    "more often than their lengths tell, and the expected words of the lecture's seven gaps the likeliest.",
    rows=("C14",),
    minutes=10,
)
Score = Callable[[list[list[int]]], np.ndarray]
"""Texts as token ids -> log-probabilities [members, texts]."""


@dataclass(frozen=True)
class Config(runtime.MembersConfig):
    """Small models, pre-trained here; or any model from a folder."""

    out: str = "runs/probes"
    seeds: int = 4
    model: str | None = None
    """A local Hugging Face folder with a tokenizer, asked as it is; none pre-trains one."""
    corpus: str | None = None
    """A UTF-8 text file to pre-train on; none means the children's books, from the data folder or the
    network."""
    pairs: int = 200
    """The first of each of BLiMP's 67 paradigms, which have 1,000."""
    vocab_size: int = 2_048
    """Tokens of the vocabulary, at most."""
    every: int = 3
    """Of the documents every so-manieth is read; 1 reads all."""
    document: int = 2
    """Sentences that see each other."""
    ngram: int = 3
    """Of the counting model that reads the same text."""
    layers: int = 4
    """Of the transformer."""
    heads: int = 4
    """Attention heads of a layer."""
    widths: tuple[int, ...] = (64, 128)
    """Numbers in a token's hidden state, of the models that are compared."""
    epochs: tuple[float, ...] = (1, 4, 16)
    """Times that the text is read, in runs of their own; all combinations with the widths."""
    context: int = 128
    """Tokens that the model reads at most."""
    batch_size: int = 8
    """Windows of text of an update."""
    warmup_steps: int = 100
    """Updates over which the learning rate rises to its full height."""
    learning_rate: float = 3e-3
    """After a linear rise it falls linearly to 0."""


def read_documents(config: Config) -> list[str]:
    """Return the corpus, a few sentences at a time, or a share of these documents."""
    if config.corpus is None:
        texts = [" ".join(words) for books in childrens_books().values() for words in books.values()]
    else:
        texts = [" ".join(read_text(config.corpus).split())]
    cut = [re.split(r"(?<=[.!?])\s+(?=[A-Z\"'])", text) for text in texts]
    size = config.document
    documents = [" ".join(found[i : i + size]) for found in cut for i in range(0, len(found), size)]
    return documents[:: config.every]


class Asked(NamedTuple):
    """Models that are asked: the members of one width before or after one training, or a published one."""

    lm: LanguageModel
    params: Any
    """Leaves [M, ...]."""


def pretrain(
    config: Config, lm: LanguageModel, rows: list[list[int]], epochs: float, folder: runtime.RunFolder
) -> Any:
    """Return the members' parameters after reading all rows so many times, or before where that is 0."""
    packed = packed_batch(pack(rows, config.context))
    steps = round(epochs * len(packed.tokens) / config.batch_size)
    learner = make_lm_learner(
        lm,
        sample_rows(packed, batch_size=config.batch_size),
        total_steps=max(steps, 1),
        warmup_steps=min(config.warmup_steps, steps // 2),
        optimizer=make_optimizer(max_grad_norm=1.0, b2=0.99, eps=1e-8),
    )
    hparams = LMHParams(config.learning_rate)
    if not epochs:
        return runtime.shard_members(
            jax.jit(jax.vmap(learner.init, (0, None)))(config.keys(), hparams)
        ).params
    how: dict[str, Any] = {"label": folder.path.name, "checkpoint_every": max(1, steps // 4)}
    return runtime.train_members(learner, hparams, config, steps, folder=folder, **how).state.params


def pretrain_all(
    config: Config, tokenizer: Tokenizer, rows: list[list[int]], folder: runtime.RunFolder
) -> dict[str, Asked]:
    """Return the models of every width, untrained and after each number of epochs, the largest last."""
    asked = {}
    for width in config.widths:
        shape = (width, config.layers, config.heads, config.context)
        lm = make_transformer(TransformerConfig(tokenizer.vocab_size, *shape))
        for epochs in (0, *config.epochs):
            name = reports.arm(width, epochs)
            asked[name] = Asked(lm, pretrain(config, lm, rows, epochs, folder.sub(name)))
    return asked


def load_asked(path: str) -> tuple[Tokenizer, Asked]:
    """Return a published model and its tokenizer."""
    model = load_model(path)
    if model.tokenizer is None:
        raise ValueError(f"{path} holds no tokenizer.json, without which no text can be asked")
    return model.tokenizer, Asked(
        make_transformer(model.config), jax.tree.map(lambda x: x[None], model.params)
    )


def make_scores(asked: dict[str, Asked]) -> dict[str, Score]:
    """Return how each model scores texts; those of one network share its program."""
    scorers = {id(model.lm): make_scorer(model.lm, members=True) for model in asked.values()}
    return {
        who: lambda texts, model=model: scorers[id(model.lm)](model.params, texts)
        for who, model in asked.items()
    }


def ask_blimp(score: Score, tokenizer: Tokenizer, paradigms: list[Paradigm], pairs: int) -> np.ndarray:
    """Return the share [members, paradigms] of pairs whose good sentence is the likelier."""
    texts = [text for p in paradigms for text in (*p.good[:pairs], *p.bad[:pairs])]
    scores = score(encode_texts(tokenizer, texts))
    scores = scores.reshape(len(scores), len(paradigms), 2, -1)
    return share_preferred(scores[:, :, 0], scores[:, :, 1])


def ask_probes(score: Score, tokenizer: Tokenizer) -> np.ndarray:
    """Return the expected word's place [members, probes] among the candidates."""
    scores = score(encode_texts(tokenizer, [text for probe in CLOZE_PROBES for text in probe.filled()]))
    return rank_of(scores.reshape(len(scores), len(CLOZE_PROBES), -1), 0)


def continuations(lm: LanguageModel, params: Any, tokenizer: Tokenizer) -> list[str]:
    """Return the likeliest next words of each probe, up to and without its gap."""
    stop = (tokenizer.stop_token,) if tokenizer.stop_token is not None else (lm.config.vocab_size - 1,)
    pad = None if tokenizer.pad_token in stop else tokenizer.pad_token
    complete = make_completer(
        lm, response_length=6, stop_tokens=stop, pad_token=pad, filters=Filters(top_k=1)
    )
    prompts = encode_texts(tokenizer, [probe.prompt() for probe in CLOZE_PROBES])
    return [tokenizer.decode(c.tokens) for c in complete(params, prompts, jax.random.key(0))]


def main(config: Config) -> None:
    """Train or load, ask both kinds of question, and draw and write the answers."""
    config.require(widths=1, epochs=0.01, every=1)
    runtime.use_cpu_devices()
    paradigms = load_blimp()
    folder = config.open_folder()
    baselines: dict[str, Score] = {}
    if config.model is None:
        documents = read_documents(config)
        tokenizer = train_bpe(documents, config.vocab_size)
        rows = encode_texts(tokenizer, documents)
        asked = pretrain_all(config, tokenizer, rows, folder)
        counts = count_ngrams(rows, order=config.ngram, vocab_size=tokenizer.vocab_size)
        baselines[f"{config.ngram}-gram"] = lambda texts: ngram_log_probs(counts, texts)[None]
    else:
        tokenizer, model = load_asked(config.model)
        asked = {reports.MODEL: model}
    readers = make_scores(asked) | baselines
    shorter: Score = lambda texts: -np.array([[len(text) for text in texts]])
    everyone = readers | {reports.SHORTER: shorter}
    found = {who: ask_blimp(score, tokenizer, paradigms, config.pairs) for who, score in everyone.items()}
    places = {who: ask_probes(score, tokenizer) for who, score in readers.items()}
    who, last = list(asked.items())[-1]
    first = jax.tree.map(lambda x: x[0], last.params)
    answers = reports.Answers(
        [p.name for p in paradigms],
        [p.term for p in paradigms],
        found,
        places,
        who,
        continuations(last.lm, first, tokenizer),
    )
    if config.model is None:
        reports.report_trained(config, folder, CLAIM, answers)
    else:
        reports.report_published(config, folder, PUBLISHED, answers)


if __name__ == "__main__":
    cli.main(Config, main)
