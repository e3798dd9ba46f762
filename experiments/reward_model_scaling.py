"""Reward models on real judgements: accuracy against the number of pairs and the size of the model.

The judgements are UKPConvArg1's: which of two arguments for the same side of a debate convinces more. A
single crowd worker agrees with the pooled labels in 85.0% (73.9% if "equal" counts as wrong). Four folds of
whole debates, so that every pair is judged by a model that has seen nothing of its debate. Intervals are over
the 16 debates, for LoRA over those of the folds that it is judged on.

Length alone says much here, so that models trained from nothing may know little more. LoRA is judged on two
folds after 30 steps, which read 480 arguments each (half an epoch); that says nothing of what longer tuning
reaches. Another seed chooses the rates of the models trained here; LoRA's 1e-3 alone was tried.
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
from rates import rates_table
from reward_model_data import Arguments
from reward_model_scaling_report import report

from jaxrl_align.align import RewardHParams, init_reward_params, make_reward_learner
from jaxrl_align.learner import make_optimizer, train
from jaxrl_align.nets import init_lora, overlay
from jaxrl_align.nets.transformer import LanguageModel, make_transformer
from jaxrl_align.runtime import Claim, RunFolder, cli
from jaxrl_align.runtime.huggingface import find_model, load_model
from jaxrl_align.runtime.mesh import use_cpu_devices

CLAIM = Claim(
    "With enough size and data a reward model comes near a single human on judgements that it has not seen.",
    rows=("F7",),
    minutes=60,
)


@dataclass(frozen=True)
class Config(BaseConfig):
    """The judgements, and the models that learn from them."""

    out: str = "runs/reward_model_scaling"
    numbers: tuple[int, ...] = (500, 2_000, 0)
    """Pairs to learn from; 0 means all of the other folds'."""
    folds: int = 4
    """Of the debates: each is held out once."""
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
    """Updates of a reward model."""
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
    """Learning rate of the published model's LoRA."""
    tuned_folds: int = 2
    """Folds that it is judged on, the first ones; ten minutes each on two cores."""
    rank: int = 8
    """Of the published model's LoRA."""


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


def own_ways(
    config: Config, folder: RunFolder, arguments: Arguments
) -> tuple[dict[str, dict[int, np.ndarray]], dict[str, dict[str, float | str]]]:
    """Return the margins of the models trained here, each width at the rate that another seed chose.

    The second is the table of the rates tried.
    """
    found, every, taken = {}, {}, {}
    for width in config.widths:
        shape = {f.name: getattr(config, f.name) for f in BaseConfig.__dataclass_fields__.values()}
        sub = folder.sub(f"own_{width}")
        base = own_base(BaseConfig(**shape | {"width": width, "context": config.length}), sub)
        search = functools.partial(search_rate, config, arguments, base)
        tried = {rate: sub.once(f"rate_{rate:g}.json", search, rate) for rate in config.rates}
        best = max(tried, key=tried.__getitem__)
        make = lambda base=base, best=best: own_models(
            config, arguments, base, config.numbers, best, config.seed
        ).tolist()
        margins = np.array(sub.once("margins.json", make))
        name = f"own, {width} wide"
        found[name] = dict(zip(config.numbers, margins, strict=True))
        every[name], taken[name] = {rate: 100 * right for rate, right in tried.items()}, best
    return found, rates_table(every, taken)


def main(config: Config) -> None:
    """Train every way on every number of pairs; draw, and write the result."""
    config.require(folds=2, steps=10, tuned_steps=10, tuned_folds=1, arguments=2, numbers=0)
    if config.tuned_folds > config.folds:
        raise ValueError(f"tuned_folds must be at most folds={config.folds}; got {config.tuned_folds}")
    use_cpu_devices()
    folder = config.open_folder()
    arguments = ukp.read_arguments()
    linear = fit_linear(arguments, tf_idf(arguments), (1e-5, 1e-4, 1e-3, 1e-2))
    found: dict[str, Any] = {
        "tf-idf": {n: out_of_fold(config, arguments, n, linear, config.seeds) for n in config.numbers}
    }
    own, tried = own_ways(config, folder, arguments)
    found |= own
    if config.frozen or config.tuned:
        found |= real_models(config, folder, arguments)
    report(folder, config, CLAIM, arguments, found, tried)


if __name__ == "__main__":
    cli.main(Config, main)
