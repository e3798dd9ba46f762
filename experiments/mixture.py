"""GPT-3's mixture on five small domains: sources weighted by quality or by size, loss per domain.

Claim (lecture 000, C10): GPT-3 draws its sources by quality instead of by size, so that the small good ones
are read two or three times and the large one less than once. Here five domains stand in for its five
sources, cut to the same proportions at 3 kB instead of 1e9 tokens, and training is as long, 300 units; a
third mixture has the published weights but new text wherever the second reads some again. Which domain is
"good" is only said by the weight; what is measured is where the loss goes.

Measured (`python experiments/mixture.py`, bits a byte on 30 kB held out of each domain, 4 seeds, 95% t
intervals, of paired differences on the right; two shared CPU cores, 4 min of CPU time):

                     size  epochs  bits, by size    epochs  bits, published   published - by size
    children's books 1230 kB 0.60  2.875 +- 0.032     0.43  2.974 +- 0.027    +0.099 +- 0.019
    Python's manual    57 kB 0.60  3.933 +- 0.045     3.44  3.433 +- 0.023    -0.500 +- 0.027
    sums in words      36 kB 0.60  3.306 +- 0.023     1.98  3.230 +- 0.020    -0.077 +- 0.025
    Shakespeare       165 kB 0.60  3.183 +- 0.038     0.43  3.289 +- 0.019    +0.105 +- 0.039
    instructions        9 kB 0.60  3.498 +- 0.043     2.97  3.379 +- 0.032    -0.119 +- 0.022
    all domains alike                                                         -0.098 +- 0.023
    all bytes alike                                                           +0.072 +- 0.021

so every domain that gains share gains, the two that lose share lose, and the sign of the whole depends on
what one counts. What reading the small sources two to three and a half times costs is too little to be
seen with four seeds: against new text in their place Python's manual differs by +0.042 +- 0.066, all alike by
-0.000 +- 0.051, so that a cost of .1 in the one and .05 in the mean is not excluded. The model is small (2
layers of 64) and has read 0.9 MB, so it is far from knowing any domain; a larger one that could learn 9 kB by
heart may pay for repeats.
"""

import json
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.data.books import childrens_books
from jaxrl_align.data.corpora import python_topics, tiny_shakespeare
from jaxrl_align.data.files import DataFile, find_file
from jaxrl_align.data.mixtures import GPT3_SOURCES, epochs_per_source, normalise_weights
from jaxrl_align.data.tokens.tokenizers import byte_tokenizer
from jaxrl_align.learner import make_optimizer
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.pretrain.lm import LMHParams, bits_per_byte, make_lm_learner, make_text_loss, sample_mixture
from jaxrl_align.runtime import cli, plots, statistics
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import MembersConfig, train_members
from jaxrl_align.runtime.mesh import use_cpu_devices

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


@dataclass(frozen=True)
class Config(MembersConfig):
    """A byte-level transformer for each mixture and seed."""

    out: str = "runs/mixture"
    seeds: int = 4
    """Members trained side by side; a seed starts every mixture from the same weights."""
    unit: int = 3_000
    """Bytes that stand for GPT-3's 1e9 tokens."""
    held_out: int = 30_000
    """Bytes of each domain."""
    layers: int = 2
    heads: int = 4
    width: int = 64
    context: int = 64
    """Bytes that are read."""
    batch_size: int = 16
    warmup_steps: int = 100
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


def make_mixtures(
    domains: dict[str, np.ndarray], unit: int
) -> dict[str, tuple[list[np.ndarray], np.ndarray]]:
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
    folder: RunFolder,
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
    trained = train_members(learner, LMHParams(config.learning_rate), config, steps, **how)
    losses = [make_text_loss(lm, tokens, length=config.context) for tokens in judges]
    judge = lambda params: jnp.stack([bits_per_byte(*loss(params)) for loss in losses])
    return np.asarray(jax.jit(jax.vmap(judge))(trained.state.params))


def print_lecture() -> None:
    """Print GPT-3's table with the epochs that its weights mean."""
    print(
        f"GPT-3's weights sum to {WEIGHTS.sum():.2f}; epochs of {TRAINED}e9 tokens, as printed, normalised:"
    )
    as_printed = epochs_per_source(WEIGHTS, BILLIONS, TRAINED)
    normalised = epochs_per_source(normalise_weights(WEIGHTS), BILLIONS, TRAINED)
    for source, a, b in zip(GPT3_SOURCES, as_printed, normalised, strict=True):
        print(f"  {source.name:24}{source.tokens / 1e9:5.0f}e9 {source.weight:6.2f}{a:8.2f}{b:8.2f}")


def report(names: list[str], unit: int, mixtures: dict, bits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Print each domain's loss under each mixture, and the paired differences, which are returned."""
    pairs = {f"{a} - {b}": (a, b) for a, b in ((PUBLISHED, BY_SIZE), (FRESH, PUBLISHED), (FRESH, BY_SIZE))}
    differences = {label: bits[a] - bits[b] for label, (a, b) in pairs.items()}
    for i, name in enumerate(names):
        print(f"{name}, {len(mixtures[BY_SIZE][0][i]) / 1e3:.0f} kB:")
        for mixture, (sources, weights) in mixtures.items():
            read = epochs_per_source(weights, [len(tokens) for tokens in sources], TRAINED * unit)[i]
            line = f"  {mixture:22} share {weights[i]:.3f}, epochs {read:5.2f}"
            print(f"{line}: {statistics.mean_text(bits[mixture][:, i], '.3f')} bits a byte")
        for label, found in differences.items():
            print(f"  {label:40} {statistics.mean_text(found[:, i], '+.3f')}")
    means = {"all domains alike": np.ones(5), "all bytes alike": BILLIONS, "by published weight": WEIGHTS}
    for which, weights in means.items():
        for label, found in differences.items():
            print(f"{which}: {label:40} {statistics.mean_text(found @ normalise_weights(weights), '+.3f')}")
    return differences


def main(config: Config) -> None:
    """Train on each mixture at the same number of bytes, and compare the domains' held-out losses."""
    use_cpu_devices()
    start = time.perf_counter()
    print_lecture()
    parts = {name: split(text, config) for name, text in read_domains().items()}
    mixtures = make_mixtures({name: train_part for name, (train_part, _) in parts.items()}, config.unit)
    judges = [held_out for _, held_out in parts.values()]
    folder = config.open_folder()
    bits = {name: train(config, *mixture, judges, folder.sub(name)) for name, mixture in mixtures.items()}
    differences = report(list(parts), config.unit, mixtures, bits)
    folder.write_json("result.json", {"domains": list(parts), "bits_per_byte": bits})
    title = f"{config.seeds} seeds, 95% interval"
    fig, ax = plots.figure("", "bits a byte against mixing by size", title=title)
    for i, name in enumerate((PUBLISHED, FRESH)):
        mean, half = statistics.mean_interval(differences[f"{name} - {BY_SIZE}"])
        ax.bar(np.arange(len(parts)) + 0.4 * i - 0.2, mean, 0.4, yerr=half, label=name)
    ax.axhline(0, color="#777777")
    sizes = BILLIONS * config.unit / 1e3
    labels = [f"{name}\n{size:.0f} kB" for name, size in zip(parts, sizes, strict=True)]
    ax.set_xticks(range(len(parts)), labels, fontsize=8)
    ax.legend()
    plots.save_figure(fig, folder.path / "loss_per_domain.png")
    print(f"figure and result.json are in {folder.path}; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    cli.main(Config, main)
