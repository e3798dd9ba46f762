"""Loss against parameters and tokens: small transformers of several widths on several lengths of training.

Characters of Shakespeare; two layers, every width and number of tokens a training of its own with a schedule
of its own, less than one epoch in all. Each width's learning rate is chosen by other seeds, on all numbers of
tokens. Two laws are fitted. That of Hoffmann et al. (2022, arXiv:2203.15556) has an offset,

    L(N, D) = E + A / N^alpha + B / D^beta,

with N the weights but for the embeddings and D the tokens read; its intervals are a bootstrap over the cells
of the table, and the runs within. That of Kaplan et al. (2020, arXiv:2001.08361) has none: straight lines of
log L, against log N at the most tokens and against log D at the largest model.

Larger models want lower rates, and a rate that is too high costs as much as a width or two. The published
exponents are of models that are larger by orders of magnitude.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scaling_law import bootstrap_law, cells_of, extrapolation_error, fit_error, slopes

from jaxrl_align import runtime
from jaxrl_align.data.corpora import read_text, tiny_shakespeare
from jaxrl_align.data.tokens.vocabularies import character_tokenizer
from jaxrl_align.learner import make_optimizer
from jaxrl_align.nets.transformer import LanguageModel, TransformerConfig, make_transformer
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner, make_text_loss, sample_windows
from jaxrl_align.runtime import Interval, RunFolder, cli, cross_rates, plots, shard_members, use_cpu_devices

CLAIM = runtime.Claim(
    "The loss of a language model falls as a power of its parameters and of the tokens that it reads, which "
    "is why compute and data have grown.",
    rows=("C13",),
    minutes=5,
)
PUBLISHED = {"with an offset (Hoffmann 2022)": (0.34, 0.28), "without (Kaplan 2020)": (0.076, 0.095)}
"""Exponents of parameters and of tokens."""


@dataclass(frozen=True)
class Config(runtime.MembersConfig):
    """Every width at every number of tokens."""

    out: str = "runs/scaling"
    seeds: int = 8
    tuning_seeds: int = 2
    """Beside those reported, whose loss chooses each width's rate."""
    corpus: str | None = None
    """A UTF-8 text file; none means tiny Shakespeare, from the data folder or the network."""
    widths: tuple[int, ...] = (8, 16, 32, 64)
    """In rising order."""
    tokens: tuple[int, ...] = (2**15, 2**16, 2**17, 2**18, 2**19)
    """Read in training, in rising order."""
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    """Learning rates that are tried."""
    layers: int = 2
    """Of the transformer."""
    heads: int = 2
    """Attention heads of a layer."""
    context: int = 64
    """Tokens that the model reads at most."""
    batch_size: int = 8
    """Windows of text of an update."""
    held_out: int = 2**16
    """Characters at the end of the text."""
    draws: int = 1_000
    """Of the bootstrap."""


def count_weights(lm: LanguageModel) -> int:
    """Return the number of weights but for the embeddings of tokens and positions."""
    shapes = jax.eval_shape(lm.init, jax.random.key(0))
    return sum(
        x.size
        for name, part in shapes.items()
        if name not in ("tokens", "positions")
        for x in jax.tree.leaves(part)
    )


def make_train(
    config: Config, lm: LanguageModel, text: np.ndarray, held_out: np.ndarray
) -> Callable[..., jax.Array]:
    """Return `(keys [M], rates [M], steps []) -> loss [M]` on the held-out text, nats a character.

    The number of steps is traced, so that each width is compiled once. The rate rises over a twentieth of
    them and falls to 0.
    """
    sample = sample_windows(jnp.asarray(text), batch_size=config.batch_size, length=config.context)
    optimizer = make_optimizer(max_grad_norm=1.0, b2=0.99, eps=1e-8)
    learner = make_lm_learner(lm, sample, optimizer=optimizer)
    judge = make_text_loss(lm, held_out, length=config.context, batch_size=64)

    def member(key: jax.Array, rate: jax.Array, steps: jax.Array) -> jax.Array:
        def step(i: jax.Array, state: Any) -> Any:
            factor = jnp.minimum((i + 1) / (0.05 * steps + 1), 1 - i / steps)
            return learner.step(state._replace(hparams=LMHParams(rate * factor)))[0]

        state = jax.lax.fori_loop(0, steps, step, learner.init(key, LMHParams(rate)))
        nats, count = judge(state.params)
        return nats / count

    return jax.jit(jax.vmap(member, (0, 0, None)))


def member_keys(config: Config, cell: int) -> jax.Array:
    """Return the keys of one cell's members, those that are reported first; no two cells share one."""
    key = jax.random.fold_in(jax.random.key(config.seed), cell)
    return jax.random.split(key, config.seeds + config.tuning_seeds)


def choose_rate(losses: np.ndarray) -> int:
    """Return the index of the rate with the lowest mean of losses [tokens, rates]; all must be finite."""
    return int(np.where(np.isfinite(losses), losses, np.inf).mean(0).argmin())


def train_width(
    config: Config, folder: RunFolder, width: int, text: np.ndarray, vocabulary: int
) -> dict[str, Any]:
    """Choose one rate for a width, train it on every number of tokens, and return what came out.

    Returns:
      `weights`, `choosing` [tokens, rates] losses of the seeds that choose, `rate`, and `loss` [tokens, M].
    """
    lm = make_transformer(
        TransformerConfig(vocabulary, width, config.layers, config.heads, config.context + 1)
    )
    train = make_train(config, lm, text[: -config.held_out], text[-config.held_out :])
    first = config.widths.index(width) * len(config.tokens)
    steps = [max(1, round(n / (config.batch_size * config.context))) for n in config.tokens]

    def run(keys: jax.Array, rates: jax.Array, i: int) -> np.ndarray:
        return np.asarray(train(*shard_members((keys, rates)), jnp.int32(steps[i])), np.float64)

    def tune(i: int) -> np.ndarray:
        keys = member_keys(config, first + i)[config.seeds :]
        keys, hparams = cross_rates(keys, LMHParams(), config.rates)
        return run(keys, hparams.learning_rate, i).reshape(len(config.rates), -1).mean(1)

    def report_loss(i: int, rate: float) -> np.ndarray:
        return run(member_keys(config, first + i)[: config.seeds], jnp.full(config.seeds, rate), i)

    cells = list(enumerate(config.tokens))
    choosing = [folder.once(f"width_{width}_tokens_{n}_rates.json", tune, i) for i, n in cells]
    rate = config.rates[choose_rate(np.array(choosing, float))]
    losses = [folder.once(f"width_{width}_tokens_{n}.json", report_loss, i, rate) for i, n in cells]
    print(f"width {width}, rate {rate:g}: " + " ".join(f"{np.mean(x):.3f}" for x in losses), flush=True)
    return {"weights": count_weights(lm), "choosing": choosing, "rate": rate, "loss": losses}


def judge_laws(
    losses: np.ndarray, sizes: np.ndarray, tokens: np.ndarray, laws: dict[str, dict]
) -> dict[str, bool]:
    """Return which parts of the claim the losses [widths, tokens, M] and the fitted exponents show.

    Args:
      losses: of all runs.
      sizes: [widths] weights.
      tokens: [tokens].
      laws: of each name in `PUBLISHED`, `alpha` and `beta`.
    """
    more = lambda first, second: runtime.paired_interval(first, second).high < 0
    inside = lambda interval, x: interval.low <= x <= interval.high
    checks = {
        "more weights lower the loss at every number of tokens": all(
            more(losses[-1, i], losses[0, i]) for i in range(len(tokens))
        ),
        "more tokens lower the loss of every width": all(more(of[-1], of[0]) for of in losses),
        "the law fitted without the largest width says its losses to 5%": (
            extrapolation_error(losses, sizes, tokens) < 0.05
        ),
    }
    for name, published in PUBLISHED.items():
        for what, key, value in zip(("weights", "tokens"), ("alpha", "beta"), published, strict=True):
            checks[f"the exponent of {what} {name} is the published {value:g}"] = inside(
                laws[name][key], value
            )
    return checks


def report(folder: RunFolder, config: Config, found: dict[int, dict[str, Any]]) -> None:
    """Fit the laws, draw the losses and write the result."""
    losses = np.array([one["loss"] for one in found.values()])
    sizes, tokens = np.array([one["weights"] for one in found.values()]), np.array(config.tokens)
    offset, straight = PUBLISHED
    laws = {
        offset: bootstrap_law(*cells_of(sizes, tokens), losses.reshape(-1, config.seeds), config.draws),
        straight: {"alpha": slopes(sizes, losses[:, -1]), "beta": slopes(tokens, losses[-1])},
    }
    curves = {f"{n:,} tokens": (sizes, losses[:, i]) for i, n in enumerate(config.tokens)}
    axes, title = ("weights but for the embeddings", "loss [nats a character]"), f"{config.seeds} seeds, 95%"
    log = {"xscale": "log", "yscale": "log", "bounds": (0, np.inf)}
    plots.save_curves(folder.path / "loss.png", *axes, curves, title=title, bars=True, **log)
    columns = {"alpha": "weights", "beta": "tokens"}
    rows = {
        f"{size:,} weights": (i, one) for i, (size, one) in enumerate(zip(sizes, found.values(), strict=True))
    }
    tables = {
        "exponents": {
            name: {columns.get(key, key): value for key, value in law.items()} for name, law in laws.items()
        },
        "held-out loss [nats a character] by tokens read": {
            name: {f"{n:,}": runtime.t_interval(losses[i, j]) for j, n in enumerate(config.tokens)}
            for name, (i, _) in rows.items()
        },
        "loss of the choosing seeds by learning rate, mean over the tokens": {
            name: {
                **{
                    f"{r:g}": float(x) for r, x in zip(config.rates, np.mean(one["choosing"], 0), strict=True)
                },
                "chosen": f"{one['rate']:g}",
            }
            for name, (_, one) in rows.items()
        },
    }
    runtime.write_result(
        folder,
        config,
        CLAIM,
        headline={f"exponent of {columns[key]}, with an offset": laws[offset][key] for key in columns},
        baselines={
            f"published exponent of {what}, {name}": Interval(value, np.nan, np.nan, "none")
            for name, values in PUBLISHED.items()
            for what, value in zip(columns.values(), values, strict=True)
        },
        checks=judge_laws(losses, sizes, tokens, laws),
        tables=tables,
        notes=[
            "the law with an offset differs from every mean loss by "
            f"{100 * fit_error(losses, sizes, tokens):.1f}% at most",
            "fitted without the largest width it differs from that one's losses by "
            f"{100 * extrapolation_error(losses, sizes, tokens):.1f}% at most",
        ],
        figures=["loss.png"],
    )


def main(config: Config) -> None:
    """Train every width at every number of tokens; fit, save, draw and report."""
    config.require(seeds=2, tuning_seeds=1, widths=1, tokens=1, draws=2)
    for name in ("widths", "tokens"):
        values = getattr(config, name)
        if len(values) < 4 or list(values) != sorted(set(values)):
            raise ValueError(f"{name} must be four or more in rising order; got {values}")
    use_cpu_devices()
    text = tiny_shakespeare() if config.corpus is None else read_text(config.corpus)
    tokenizer = character_tokenizer(text)
    ids = np.asarray(tokenizer.encode(text), np.int32)
    if max(config.tokens) + config.held_out > len(ids):
        raise ValueError(
            f"the text must hold {max(config.tokens)} tokens to read once and {config.held_out} held out; "
            f"got {len(ids)}; lower tokens or held_out"
        )
    folder = config.open_folder()
    found = {width: train_width(config, folder, width, ids, tokenizer.vocab_size) for width in config.widths}
    report(folder, config, found)


if __name__ == "__main__":
    cli.main(Config, main)
