"""GPT-3's mixture on five small domains: sources weighted by quality or by size, loss per domain.

GPT-3 draws its sources by quality instead of by size, so that the small good ones are read two or three times
and the large one less than once. Here five domains stand in for its five sources, cut to the same proportions
at 3 kB instead of 1e9 tokens, and training is as long, 300 units; a third mixture has the published weights
but new text wherever the second reads some again. Which domain is "good" is only said by the weight; what is
measured is where the loss goes, on 30 kB held out of each domain, in differences paired by seed.

The model is small (2 layers of 64) and has read 0.9 MB, so it is far from knowing any domain; a larger one
that could learn 9 kB by heart may pay for repeats.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import runtime
from jaxrl_align.data.books import childrens_books
from jaxrl_align.data.corpora import python_topics, tiny_shakespeare
from jaxrl_align.data.files import DataFile, find_file
from jaxrl_align.data.mixtures import GPT3_SOURCES, epochs_per_source, normalise_weights
from jaxrl_align.data.tokens.vocabularies import byte_tokenizer
from jaxrl_align.learner import make_optimizer
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.pretrain.lm import LMHParams, bits_per_byte, make_lm_learner, make_text_loss, sample_mixture
from jaxrl_align.runtime import cli, plots, statistics

CLAIM = runtime.Claim(
    "Drawn by quality instead of by size, GPT-3's small sources are learnt better although they are read two "
    "to three times, and the others worse; which mixture is the better one depends on what is counted.",
    rows=("C10", "H11"),
    minutes=3,
)

GSM8K = DataFile(
    "reasoning/gsm8k_train.jsonl",
    "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/train.jsonl",
    "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
)
INSTRUCTIONS = DataFile(
    "instruction/instructions_1100.json",
    "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/"
    "instruction-data.json",
    "7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
)

BILLIONS = np.array([source.tokens / 1e9 for source in GPT3_SOURCES])
WEIGHTS = np.array([source.weight for source in GPT3_SOURCES])
TRAINED = 300
"""Billions of tokens that GPT-3 was trained on."""
BY_SIZE, PUBLISHED, FRESH = "by size", "published", "published, new text"
PIECE = 2_000
"""Bytes that stay together when a domain's text is shuffled."""
COST = 0.1
"""Bits a byte that reading text again may cost and count as little."""


@dataclass(frozen=True)
class Config(runtime.MembersConfig):
    """A byte-level transformer for each mixture and seed."""

    out: str = "runs/mixture"
    seeds: int = 4
    """Members trained side by side; a seed starts every mixture from the same weights."""
    unit: int = 3_000
    """Bytes that stand for GPT-3's 1e9 tokens."""
    held_out: int = 30_000
    """Bytes of each domain."""
    layers: int = 2
    """Of the transformer."""
    heads: int = 4
    """Attention heads of a layer."""
    width: int = 64
    """Numbers in a token's hidden state."""
    context: int = 64
    """Bytes that are read."""
    batch_size: int = 16
    """Windows of text of an update."""
    warmup_steps: int = 100
    """Updates over which the learning rate rises to its full height."""
    learning_rate: float = 3e-3
    """After a linear rise it falls linearly to 0."""


def read_domains() -> dict[str, str]:
    """Return five domains, each in the place of one of GPT-3's sources."""
    books = [" ".join(words) for author in childrens_books().values() for words in author.values()]
    lines = find_file(GSM8K).read_text(encoding="utf-8").splitlines()
    tasks = json.loads(find_file(INSTRUCTIONS).read_text(encoding="utf-8"))
    return {
        "children's books": "\n".join(books),
        "Python's manual": python_topics(),
        "sums in words": "\n\n".join(json.loads(line)["question"] for line in lines),
        "Shakespeare": tiny_shakespeare(),
        "instructions": "\n\n".join("\n".join(filter(None, task.values())) for task in tasks),
    }


def split(text: str, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return a domain's tokens to learn from and those held out, in shuffled pieces."""
    tokens = np.asarray(byte_tokenizer().encode(text), np.int32)
    pieces = [tokens[i : i + PIECE] for i in range(0, len(tokens), PIECE)]
    order = np.random.default_rng(config.seed).permutation(len(pieces))
    shuffled = np.concatenate([pieces[i] for i in order])
    return shuffled[config.held_out :], shuffled[: config.held_out]


Mixtures = dict[str, tuple[list[np.ndarray], np.ndarray]]
"""Sources and weights by name."""
Differences = Mapping[str, runtime.Interval]
"""Bits a byte by domain, and as means over them."""


def make_mixtures(domains: dict[str, np.ndarray], unit: int) -> Mixtures:
    """Return each mixture's sources and weights.

    Raises:
      ValueError: a domain is too small.
    """
    sizes = (BILLIONS * unit).astype(int)
    published = normalise_weights(WEIGHTS)
    new = np.maximum(sizes, np.ceil(published * TRAINED * unit).astype(int))
    for (name, tokens), size in zip(domains.items(), new, strict=True):
        if len(tokens) < size:
            raise ValueError(f"{name} must hold {size} bytes to learn from; got {len(tokens)}; lower unit")
    cut = lambda lengths: [tokens[:n] for tokens, n in zip(domains.values(), lengths, strict=True)]
    return {
        BY_SIZE: (cut(sizes), normalise_weights(sizes)),
        PUBLISHED: (cut(sizes), published),
        FRESH: (cut(new), published),
    }


def train(
    config: Config,
    sources: list[np.ndarray],
    weights: np.ndarray,
    judges: list[np.ndarray],
    folder: runtime.RunFolder,
) -> np.ndarray:
    """Return the bits per byte [M, domains] after training on one mixture."""
    steps = round(TRAINED * config.unit / (config.batch_size * config.context))
    shape = (config.width, config.layers, config.heads, config.context + 1)
    lm = make_transformer(TransformerConfig(byte_tokenizer().vocab_size, *shape))
    learner = make_lm_learner(
        lm,
        sample_mixture(sources, weights, batch_size=config.batch_size, length=config.context),
        total_steps=steps,
        warmup_steps=config.warmup_steps,
        optimizer=make_optimizer(max_grad_norm=1.0, b2=0.99, eps=1e-8),
    )
    how = {"folder": folder, "label": folder.path.name}
    trained = runtime.train_members(learner, LMHParams(config.learning_rate), config, steps, **how)
    losses = [make_text_loss(lm, tokens, length=config.context) for tokens in judges]
    judge = lambda params: jnp.stack([bits_per_byte(*loss(params)) for loss in losses])
    return np.asarray(jax.jit(jax.vmap(judge))(trained.state.params))


def table_of_gpt3() -> dict[str, dict[str, float]]:
    """Return GPT-3's sources with the epochs that their weights mean, as printed and normalised."""
    as_printed = epochs_per_source(WEIGHTS, BILLIONS, TRAINED)
    normalised = epochs_per_source(normalise_weights(WEIGHTS), BILLIONS, TRAINED)
    return {
        source.name: {"1e9 tokens": source.tokens / 1e9, "weight": source.weight}
        | {"epochs, as printed": float(a), "normalised": float(b)}
        for source, a, b in zip(GPT3_SOURCES, as_printed, normalised, strict=True)
    }


def epochs_of(mixtures: Mixtures, unit: int) -> dict[str, np.ndarray]:
    """Return by mixture how often each domain is read."""
    return {
        name: epochs_per_source(weights, [len(tokens) for tokens in sources], TRAINED * unit)
        for name, (sources, weights) in mixtures.items()
    }


def compare(names: list[str], bits: dict[str, np.ndarray], first: str, second: str) -> dict[str, Any]:
    """Return the paired differences of two mixtures' bits per byte [M, domains], by domain and as means."""
    difference = bits[first] - bits[second]
    found = {name: runtime.t_interval(difference[:, i]) for i, name in enumerate(names)}
    means = {"all domains alike": np.ones(5), "all bytes alike": BILLIONS, "by published weight": WEIGHTS}
    return found | {
        name: runtime.t_interval(difference @ normalise_weights(by)) for name, by in means.items()
    }


def judge(
    gains: list[str], losers: list[str], published: Differences, repeats: Differences
) -> dict[str, bool]:
    """Return which parts of the claim hold.

    Args:
      gains: domains whose share the published weights raise.
      losers: the others.
      published: bits a byte with the published weights less by size.
      repeats: with repeats less with new text in their place.
    """
    return {
        "each domain that gains share has the lower loss": all(published[name].high < 0 for name in gains),
        "each domain that loses share has the higher loss": all(published[name].low > 0 for name in losers),
        f"reading again costs each of the repeated domains less than {COST} bits a byte": all(
            repeats[name].high < COST for name in gains
        ),
        "all domains alike, the published weights are better": published["all domains alike"].high < 0,
        "all bytes alike, they are worse": published["all bytes alike"].low > 0,
    }


def draw(path: Path, config: Config, names: list[str], bits: dict[str, np.ndarray]) -> None:
    """Draw what each domain loses or gains against mixing by size."""
    title = f"{config.seeds} seeds, 95% interval"
    fig, ax = plots.figure("", "bits a byte against mixing by size", title=title)
    for i, name in enumerate((PUBLISHED, FRESH)):
        mean, half = statistics.mean_interval(bits[name] - bits[BY_SIZE])
        ax.bar(np.arange(len(names)) + 0.4 * i - 0.2, mean, 0.4, yerr=half, label=name, **plots.bar_look(i))
    ax.axhline(0, color="#777777")
    sizes = BILLIONS * config.unit / 1e3
    labels = [f"{name}\n{size:.0f} kB" for name, size in zip(names, sizes, strict=True)]
    ax.set_xticks(range(len(names)), labels, fontsize=8)
    ax.legend()
    plots.save_figure(fig, path)


def report(
    config: Config,
    folder: runtime.RunFolder,
    names: list[str],
    mixtures: Mixtures,
    bits: dict[str, np.ndarray],
) -> None:
    """Write the result of bits per byte [M, domains] by mixture."""
    read = epochs_of(mixtures, config.unit)
    pairs = {f"{a} less {b}": (a, b) for a, b in ((PUBLISHED, BY_SIZE), (PUBLISHED, FRESH), (FRESH, BY_SIZE))}
    differences = {label: compare(names, bits, *pair) for label, pair in pairs.items()}
    published, repeats = (differences[f"{PUBLISHED} less {other}"] for other in (BY_SIZE, FRESH))
    more = mixtures[PUBLISHED][1] > mixtures[BY_SIZE][1]
    gains, losers = ([name for name, up in zip(names, more, strict=True) if up == which] for which in (1, 0))
    rows = {
        name: {"size [kB]": len(mixtures[BY_SIZE][0][i]) / 1e3}
        | {f"epochs, {mixture}": float(x[i]) for mixture, x in read.items()}
        | {f"bits a byte, {mixture}": runtime.t_interval(x[:, i]) for mixture, x in bits.items()}
        for i, name in enumerate(names)
    }
    most = names[int(read[PUBLISHED].argmax())]
    runtime.write_result(
        folder,
        config,
        CLAIM,
        headline={f"{most}, read most often, published less by size [bits a byte]": published[most]},
        baselines={"the same less with new text instead of repeats": repeats[most]},
        checks=judge(gains, losers, published, repeats),
        tables={
            "held out of each domain": rows,
            "differences, paired by seed [bits a byte]": {
                name: {label: found[name] for label, found in differences.items()} for name in published
            },
            "GPT-3's own sources": table_of_gpt3(),
        },
        notes=[f"GPT-3's printed weights sum to {WEIGHTS.sum():.2f}; here they are normalised"],
        figures=["loss_per_domain.png"],
    )


def main(config: Config) -> None:
    """Train on each mixture at the same number of bytes, and compare the domains' held-out losses."""
    config.require(seeds=2)
    runtime.use_cpu_devices()
    parts = {name: split(text, config) for name, text in read_domains().items()}
    mixtures = make_mixtures({name: train_part for name, (train_part, _) in parts.items()}, config.unit)
    judges = [held_out for _, held_out in parts.values()]
    folder = config.open_folder()
    bits = {name: train(config, *mixture, judges, folder.sub(name)) for name, mixture in mixtures.items()}
    draw(folder.path / "loss_per_domain.png", config, list(parts), bits)
    report(config, folder, list(parts), mixtures, bits)


if __name__ == "__main__":
    cli.main(Config, main)
