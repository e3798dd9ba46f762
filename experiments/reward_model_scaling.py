"""Reward models on real judgements: accuracy against the number of pairs and the size of the model.

Claim (lecture 003, F7): with enough size and data a reward model comes near a single human. The judgements
are UKPConvArg1's: which of two arguments for the same side of a debate convinces more. A single crowd worker
agrees with the pooled labels in 85.0% (73.9% if "equal" counts as wrong). Four folds of whole debates, so
that every pair is judged by a model that has seen nothing of its debate.

Measured (`JAXRL_ALIGN_DATA=FOLDER python experiments/reward_model_scaling.py`; 4 seeds, which draw the pairs
and the head, LoRA one; intervals bootstrapped over the 16 debates, 8 for LoRA; an hour and a half on 2 CPU
cores that other jobs shared, its parts run apart and put together): held-out pairs that are ordered rightly
[%], and how many more than tf-idf on the same ones.

    pairs learnt from               500                2,000              8,738
    tf-idf, Bradley-Terry       76.2 [73.8, 78.2]  77.1 [74.5, 79.3]  78.0 [75.3, 80.2]
    own, 32 wide, 2 layers      74.9 [72.3, 77.3]  76.0 [73.7, 78.1]  75.8 [73.3, 78.0]   -2.2 [-3.7, -0.7]
    own, 64 wide, 2 layers      75.5 [73.2, 77.6]  76.5 [74.4, 78.7]  76.7 [74.8, 78.6]   -1.2 [-2.7, +0.4]
    SmolLM2, features frozen    80.6 [77.9, 83.2]  82.2 [79.6, 84.5]  82.0 [79.3, 84.4]   +4.0 [+1.7, +6.2]
    SmolLM2, LoRA 8, 30 steps                                         78.9 [75.4, 82.3]   +0.6 [-1.8, +3.2]
    the longer argument                                               75.9

and of the 1,128 pairs whose lengths differ by a tenth at most (509 for LoRA), with the calibration error in
points, first seed: tf-idf 58.3 [53.5, 63.0] and 10.4; 32 wide 60.5 and 12.3; 64 wide 62.3 [59.5, 65.7] and
12.0; SmolLM2's features 72.5 [69.6, 75.3] and 1.9; LoRA 66.2 [60.2, 73.4] and 2.9.

So size helps and data soon does not: 135 million pre-trained weights beat tf-idf outside the interval and
come near the single human, whose 85.0% lies just above it, while models trained here know little more than
length. LoRA was judged on two folds after 30 steps, which read 480 arguments each (half an epoch): it is
level with tf-idf there, and says nothing of what longer tuning reaches. Rates tried for the own models, on
one other seed: 1e-3 74.7 and 76.4, 3e-3 77.0 and 76.7 (taken); LoRA's 1e-3 alone was tried.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import reward_model_data as ukp
from peft_task import BaseConfig, own_base
from reward_model_data import Arguments

from jaxrl_align.align import RewardHParams, init_reward_params, make_reward_learner
from jaxrl_align.evaluate import report_pairs
from jaxrl_align.learner import make_optimizer, train
from jaxrl_align.nets import init_lora, overlay
from jaxrl_align.nets.transformer import LanguageModel, make_transformer
from jaxrl_align.runtime import cli, plots
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.huggingface import find_model, load_model
from jaxrl_align.runtime.mesh import use_cpu_devices
from jaxrl_align.runtime.resampling import bootstrap_mean

HUMAN = 0.850
"""Share in which a single worker agrees with the pooled label."""


@dataclass(frozen=True)
class Config(BaseConfig):
    """The judgements, and the models that learn from them."""

    out: str = "runs/reward_model_scaling"
    numbers: tuple[int, ...] = (500, 2_000, 0)
    """Pairs to learn from; 0 means all of the other folds'."""
    folds: int = 4
    widths: tuple[int, ...] = (32, 64)
    """Of the models trained here."""
    arguments: int = 16
    """Of one side in a batch, with all judged pairs among them."""
    vocabulary: int = 4096
    length: int = 288
    """Tokens of a prompt and its argument, for the models trained here."""
    train_length: int = 160
    """Longer arguments are judged, but not learnt from."""
    pretrain_steps: int = 300
    steps: int = 200
    rates: tuple[float, ...] = (1e-3, 3e-3)
    """Of which another seed chooses one for each width."""
    tuned: bool = True
    """SmolLM2 by LoRA too."""
    frozen: bool = True
    """SmolLM2's features; two minutes."""
    tuned_length: int = 176
    """Tokens of a prompt and its argument for SmolLM2."""
    tuned_train_length: int = 128
    """Longer arguments, one in fifteen, are not learnt from."""
    tuned_steps: int = 30
    """In each fold, which reads 480 of its 790 arguments."""
    tuned_rate: float = 1e-3
    tuned_folds: int = 2
    """Folds that it is judged on, the first ones; ten minutes each on two cores."""
    rank: int = 8


Fit = Callable[[np.ndarray, int], np.ndarray]
"""`(indices of pairs to learn from, seed) -> margins [N]`."""


def out_of_fold(config: Config, arguments: Arguments, number: int, fit: Fit, seeds: int) -> np.ndarray:
    """Return the margin of every pair under a model of the other folds' pairs [seeds, N]."""
    fold = ukp.make_folds(arguments, config.folds)
    margins = np.zeros((seeds, len(fold)))
    for seed in range(seeds):
        for k in range(config.folds):
            chosen = choose(fold, k, number, config.seed + seed)
            margins[seed, fold == k] = fit(chosen, config.seed + seed)[fold == k]
    return margins


def choose(fold: np.ndarray, held_out: int, number: int, seed: int) -> np.ndarray:
    """Return pairs outside a fold, `number` of them at random, or all; more contain fewer."""
    others = np.random.default_rng([seed, held_out]).permutation(np.flatnonzero(fold != held_out))
    return others[: number or None]


def fit_linear(arguments: Arguments, features: Any, penalties: tuple[float, ...]) -> Fit:
    """Return Bradley-Terry on features [S * A, F]; a third of the debates chooses its penalty."""
    from sklearn.linear_model import LogisticRegression

    most = max(map(len, arguments.texts))
    side, better, worse = arguments.pairs.T
    first, second = features[side * most + better], features[side * most + worse]
    difference = first - second

    def model(penalty: float, rows: np.ndarray, seed: int) -> np.ndarray:
        flip = np.where(np.random.default_rng(seed).random(len(rows)) < 0.5, -1.0, 1.0)
        x = (
            difference[rows].multiply(flip[:, None]).tocsr()
            if hasattr(difference, "tocsr")
            else (difference[rows] * flip[:, None])
        )
        fitted = LogisticRegression(C=penalty, fit_intercept=False, max_iter=2000).fit(x, flip)
        return fitted.decision_function(difference)

    def fit(chosen: np.ndarray, seed: int) -> np.ndarray:
        inner = arguments.debate[chosen] % 3 == 0
        right = [np.mean(model(c, chosen[~inner], seed)[chosen[inner]] > 0) for c in penalties]
        return model(penalties[int(np.argmax(right))], chosen, seed)

    return fit


def tf_idf(arguments: Arguments) -> Any:
    """Return tf-idf of words, one row an argument, not normalised: longer arguments have more."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    most = max(map(len, arguments.texts))
    texts = [texts[i] if i < len(texts) else "" for texts in arguments.texts for i in range(most)]
    return TfidfVectorizer(min_df=2, sublinear_tf=True, norm=None).fit_transform(texts)


def own_models(
    config: Config, arguments: Arguments, base: Any, numbers: tuple[int, ...], rate: float, first_seed: int
) -> np.ndarray:
    """Return out-of-fold margins [numbers, seeds, N] of a model trained here: all folds and seeds at once."""
    tokens, real = ukp.encode(arguments, base.tokenizer, config.length)
    short = ukp.encode(arguments, base.tokenizer, config.train_length, drop=True)
    fold = ukp.make_folds(arguments, config.folds)
    seeds = np.repeat(np.arange(first_seed, first_seed + config.seeds), config.folds)
    held = np.tile(np.arange(config.folds), config.seeds)
    pool = [jnp.asarray(x) for x in short]
    read = ukp.make_reader(base.lm)

    @jax.jit
    def run(table: jax.Array, seed: jax.Array, *held_out: jax.Array) -> jax.Array:
        sample = ukp.sample_arguments(*pool, table, config.arguments)
        learner = make_reward_learner(
            base.lm,
            sample,
            objective=ukp.judged_pairs_objective(base.lm),
            total_steps=config.steps,
            warmup_steps=config.steps // 10,
            optimizer=make_optimizer(max_grad_norm=1.0, eps=1e-8),
        )
        key_head, key = jax.random.split(jax.random.key(seed))
        params = init_reward_params(key_head, base.lm, jax.tree.map(jnp.asarray, base.params))
        state, _ = train(learner, config.steps)(key, RewardHParams(rate), params)
        return read(*held_out, state.params)

    sides = [np.unique(arguments.pairs[fold == k, 0]) for k in range(config.folds)]
    sides = [np.resize(here, max(map(len, sides))) for here in sides]
    margins = np.zeros((len(numbers), config.seeds, len(fold)))
    for i, number in enumerate(numbers):
        for seed, k in zip(seeds, held, strict=True):
            table = ukp.pair_table(arguments, choose(fold, k, number, seed))
            here = sides[k]
            scores = np.zeros(tokens.shape[:2])
            scores[here] = run(jnp.asarray(table), int(seed), tokens[here], real[here])
            margins[i, seed - first_seed, fold == k] = ukp.margins_of(arguments, scores)[fold == k]
        right = 100 * np.mean(margins[i] > 0)
        print(
            f"  {base.lm.config.width} wide, rate {rate:g}, {number or 'all'} pairs: {right:.1f}%", flush=True
        )
    return margins


def frozen_features(lm: LanguageModel, params: Any, tokens: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Return the last hidden state at each text's last token, and its mean over the text [S * A, 2 width]."""

    def one(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden, _ = lm.encode(params, *row)
        last = jnp.max(jnp.where(row[1] > 0, jnp.arange(len(row[1])), 0))
        return jnp.concatenate([hidden[last], row[1] @ hidden / jnp.maximum(jnp.sum(row[1]), 1.0)])

    rows = [jnp.asarray(x.reshape(-1, x.shape[-1])) for x in (tokens, real)]
    features = np.asarray(jax.jit(lambda *rows: jax.lax.map(one, rows, batch_size=16))(*rows), float)
    used = real.reshape(-1, real.shape[-1]).sum(1) > 0
    return (features - features[used].mean(0)) / (features[used].std(0) + 1e-6)


def tuned_fold(config: Config, arguments: Arguments, model: Any, held_out: int) -> list[float]:
    """Return the margins of one fold under SmolLM2 with LoRA, tuned on the others."""
    lm = make_transformer(model.config)
    tokens, real = ukp.encode(arguments, model.tokenizer, config.tuned_length)
    short = map(jnp.asarray, ukp.encode(arguments, model.tokenizer, config.tuned_train_length, drop=True))
    fold = ukp.make_folds(arguments, config.folds)
    seed = config.seed + held_out
    table = ukp.pair_table(arguments, choose(fold, held_out, 0, seed))
    key_head, key_lora, key = jax.random.split(jax.random.key(seed), 3)
    whole = init_reward_params(key_head, lm, model.params)
    lora, constants = init_lora(key_lora, whole["lm"], rank=config.rank, alpha=2 * config.rank)
    frozen = {"lm": overlay(whole["lm"], constants), "head": whole["head"]}
    learner = make_reward_learner(
        lm,
        ukp.sample_arguments(*short, jnp.asarray(table), config.arguments),
        objective=ukp.judged_pairs_objective(lm),
        total_steps=config.tuned_steps,
        warmup_steps=config.tuned_steps // 10,
        optimizer=make_optimizer(max_grad_norm=1.0, eps=1e-8),
    )
    part = {"lm": lora, "head": whole["head"]}
    state = learner.init(key, RewardHParams(config.tuned_rate), part)
    step = jax.jit(learner.step, donate_argnums=0)
    started = time.monotonic()
    for i in range(config.tuned_steps):
        state, metrics = step(state, None, frozen)
        if i % 10 == 9:
            said = f"loss {metrics['loss']:.3f}, accuracy {metrics['accuracy']:.3f}"
            print(f"  fold {held_out}, step {i + 1}: {said}, {time.monotonic() - started:.0f} s", flush=True)
    here = np.unique(arguments.pairs[fold == held_out, 0])
    scores = np.zeros(tokens.shape[:2])
    scores[here] = jax.jit(ukp.make_reader(lm, 8))(tokens[here], real[here], state.params, frozen)
    return ukp.margins_of(arguments, scores)[fold == held_out].tolist()


def real_models(config: Config, folder: RunFolder, arguments: Arguments) -> dict[str, dict[int, np.ndarray]]:
    """Return the margins of SmolLM2's ways: way -> number of pairs -> [seeds, N]."""
    model = load_model(find_model())
    found: dict[str, dict[int, np.ndarray]] = {}
    if config.frozen:
        lm = make_transformer(model.config)
        tokens, real = ukp.encode(arguments, model.tokenizer, config.tuned_length)
        make = lambda: frozen_features(lm, model.params, tokens, real).tolist()
        features = np.array(folder.once("features.json", make))
        fit = fit_linear(arguments, features, (1e-5, 1e-4, 1e-3, 1e-2))
        found["SmolLM2, features frozen"] = {
            n: out_of_fold(config, arguments, n, fit, config.seeds) for n in config.numbers
        }
    if config.tuned:
        fold = ukp.make_folds(arguments, config.folds)
        margins = np.full((1, len(fold)), np.nan)
        for k in range(config.tuned_folds):
            margins[0, fold == k] = folder.once(f"tuned_{k}.json", tuned_fold, config, arguments, model, k)
        found["SmolLM2, LoRA"] = {0: margins}
    return found


def search_rate(config: Config, arguments: Arguments, base: Any, rate: float) -> float:
    """Return the out-of-fold accuracy of a rate on another seed."""
    one = replace(config, seeds=1)
    return float(np.mean(own_models(one, arguments, base, (0,), rate, config.seed + 1000) > 0))


def own_ways(config: Config, folder: RunFolder, arguments: Arguments) -> dict[str, dict[int, np.ndarray]]:
    """Return the margins of the models trained here, each width at the rate that other seeds chose."""
    found = {}
    for width in config.widths:
        shape = {f.name: getattr(config, f.name) for f in BaseConfig.__dataclass_fields__.values()}
        sub = folder.sub(f"own_{width}")
        base = own_base(BaseConfig(**shape | {"width": width, "context": config.length}), sub)
        search = functools.partial(search_rate, config, arguments, base)
        tried = {rate: sub.once(f"rate_{rate:g}.json", search, rate) for rate in config.rates}
        best = max(tried, key=tried.__getitem__)
        print(f"{width} wide: rates tried on another seed {tried}; {best:g} is taken", flush=True)
        make = lambda base=base, best=best: own_models(
            config, arguments, base, config.numbers, best, config.seed
        ).tolist()
        margins = np.array(sub.once("margins.json", make))
        found[f"own, {width} wide"] = dict(zip(config.numbers, margins, strict=True))
    return found


def share_right(
    margins: np.ndarray, debate: np.ndarray, than: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Return the mean accuracy over seeds, or its gain on another's, and its interval over debates."""
    right = np.mean(0.5 + 0.5 * np.sign(margins), 0)
    if than is not None:
        right = right - np.mean(0.5 + 0.5 * np.sign(than), 0)
    found = bootstrap_mean(right, debate, draws=4000)
    return found.value, found.low, found.high


def report(config: Config, folder: RunFolder, arguments: Arguments, found: dict[str, Any]) -> None:
    """Print every way's accuracy by the number of pairs, the last one in full, and draw them."""
    fold = ukp.make_folds(arguments, config.folds)
    every = round(len(fold) * (1 - 1 / config.folds))
    lines, results = {}, {}
    for way, by_number in found.items():
        for number, margins in by_number.items():
            judged = np.isfinite(margins[0])
            mean, low, high = share_right(margins[:, judged], arguments.debate[judged])
            beside = found["tf-idf"][number][:, judged]
            gain = share_right(margins[:, judged], arguments.debate[judged], beside)
            row = {"accuracy": (mean, low, high), "over tf-idf": gain}
            results.setdefault(way, {})[number or every] = row
            own = f"{100 * mean:.1f}% [{100 * low:.1f}, {100 * high:.1f}] of {judged.sum():,}"
            said = f"{own}, over tf-idf {100 * gain[0]:+.1f} [{100 * gain[1]:+.1f}, {100 * gain[2]:+.1f}]"
            print(f"{way:26} {number or every:6,} pairs: {said}")
        last = by_number[config.numbers[-1]][0]
        judged = np.isfinite(last)
        measured = arguments.lengths[judged], arguments.debate[judged]
        print(f"  first seed: {report_pairs(last[judged], measured[0], groups=measured[1])}")
        lines[way] = [(n, results[way][n]["accuracy"]) for n in sorted(results[way])]
    folder.write_json("result.json", results)
    fig, ax = plots.figure("pairs learnt from", "accuracy on held-out debates", title="UKPConvArg1")
    for i, (way, points) in enumerate(lines.items()):
        x = np.array([n for n, _ in points]) * 1.03 ** (i - 2)
        mean, low, high = np.array([a for _, a in points]).T
        ax.errorbar(x, mean, [mean - low, high - mean], marker="o", markersize=4, capsize=2, label=way)
    ax.axhline(HUMAN, color="#333333", linestyle=":", label="a single human")
    longer = float(np.mean(0.5 + 0.5 * np.sign(arguments.lengths[:, 0] - arguments.lengths[:, 1])))
    ax.axhline(longer, color="#999999", linestyle="--", label="the longer argument")
    ax.set(xscale="log", ylim=(0.62, 0.87))
    ax.legend(fontsize=7, loc="lower right", ncols=2)
    plots.save_figure(fig, folder.path / "reward_model_scaling.png")


def main(config: Config) -> None:
    """Train every way on every number of pairs; print, save and draw."""
    config.require(folds=2, steps=10, tuned_steps=10, tuned_folds=1, arguments=2, numbers=0)
    if config.tuned_folds > config.folds:
        raise ValueError(f"tuned_folds must be at most folds={config.folds}; got {config.tuned_folds}")
    use_cpu_devices()
    folder = config.open_folder()
    started = time.monotonic()
    arguments = ukp.read_arguments()
    longer = (arguments.lengths[:, 0] - arguments.lengths[:, 1]).astype(float)
    linear = fit_linear(arguments, tf_idf(arguments), (1e-5, 1e-4, 1e-3, 1e-2))
    found: dict[str, Any] = {
        "tf-idf": {n: out_of_fold(config, arguments, n, linear, config.seeds) for n in config.numbers}
    }
    print(f"length alone: {100 * np.mean(0.5 + 0.5 * np.sign(longer)):.1f}%", flush=True)
    found |= own_ways(config, folder, arguments)
    if config.frozen or config.tuned:
        found |= real_models(config, folder, arguments)
    report(config, folder, arguments, found)
    print(f"figure and result.json are in {folder.path}; {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    cli.main(Config, main)
