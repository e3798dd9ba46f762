"""RLHF, fine-tuning and pre-training before an independent judge; what fine-tuning by imitation does.

DOCSTRING
"""

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rlhf
import rlhf_setup
from answers import Answers, Pool, choose_rates, fit_and_score, pair_accuracy
from rlhf_setup import Setup, as_demonstrations
from rlhf_vs_sft_report import draw_cloning, draw_judged, report

from jaxrl_align.actors.text import Frozen
from jaxrl_align.align import RewardModel, RLHFHParams, choose_completions, comparison_objective, init_policy
from jaxrl_align.feedback.annotators import compare
from jaxrl_align.pretrain.lm import next_token_objective
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import cross_rates, train_members
from jaxrl_align.runtime.mesh import use_cpu_devices
from jaxrl_align.types import Comparisons, PaddedTokens, Params

STAGES = ("pre-trained", "SFT", "SFT, longer", "RLHF")
COMPARED = ((1, 0), (3, 1), (3, 2), (3, 0), (2, 1))
"""Pairs of stages that the judge compares."""
SOURCES = ("pre-trained", "SFT", "half of each")
"""Whose answers are compared to teach a reward model."""


@dataclass(frozen=True)
class Config(rlhf.Config):
    """The stages, the judge, and the reward models that are taught by different answers."""

    out: str = "runs/rlhf_vs_sft"
    seeds: int = 6
    """The first choose the rates, the others are reported."""
    tuning_seeds: int = 2
    width: int = 64
    layers: int = 1
    pretrain_steps: int = 300
    longer: int = 4
    """Times the steps of fine-tuning that the control without RLHF takes."""
    measured: tuple[int, ...] = (0, 5, 10, 20, 50, 100)
    """Steps of fine-tuning after which the policy is measured."""
    comparisons: int = 1024
    """For the reward model; the judge learns from as many others, of which none is held out."""
    reward_steps: int = 60
    reward_learning_rate: float = 5e-4
    """Of RLHF's reward model and of the judge."""
    batch_size: int = 32
    """Comparisons a step, of the judge and of the taught reward models."""
    rlhf_steps: int = 40
    sft_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    rlhf_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    reward_rates: tuple[float, ...] = (1.5e-4, 5e-4, 1.5e-3)
    """Of the taught reward models, chosen for each source."""

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes of training."""
        super().__post_init__()
        self.require(tuning_seeds=1, seeds=self.tuning_seeds + 2, measured=0, longer=2, comparisons=10)
        if self.comparisons % 2:
            raise ValueError(f"comparisons must be even, two to a prompt; got {self.comparisons}")


def answer(setup: Setup, stages: Sequence[Params], prompts: PaddedTokens, each: int, purpose: int) -> Answers:
    """Let every stage's policies answer prompts [M, N, P] `each` times; G = stages x each, stage by stage.

    Two stages draw with the same keys.
    """
    whole = jax.vmap(functools.partial(init_policy, setup.lm))
    samples = [
        setup.write(whole(params), stages[0], prompts, setup.keys(purpose + i))
        for params in stages
        for i in range(each)
    ]
    stack = lambda *x: np.stack(x, 2)
    completions = jax.tree.map(stack, *(s.completions for s in samples))
    members, count = samples[0].gold.shape
    texts = [[s.texts[m][n] for n in range(count) for s in samples] for m in range(members)]
    return Answers(prompts, completions, stack(*(s.gold for s in samples)), texts)


def format_shares(setup: Setup, tokens: PaddedTokens) -> dict[str, np.ndarray]:
    """Return the shares [...] of answers [..., N, C] that stop, and that stop after a full stop."""
    stop = (np.asarray(tokens.tokens) == setup.text.stop_token) & (np.asarray(tokens.real) > 0)
    texts = np.asarray(tokens.tokens).reshape(-1, tokens.tokens.shape[-1])
    whole = np.array([setup.tokenizer.decode(row).rstrip().endswith(".") for row in texts])
    stopped = stop.any(-1)
    return {"stops": stopped.mean(-1), "sentence": (stopped & whole.reshape(stopped.shape)).mean(-1)}


def token_divergence(a: PaddedTokens, b: PaddedTokens, vocab_size: int) -> float:
    """Return the Jensen-Shannon divergence of two texts' token frequencies, in nats from 0 to log 2."""
    count = lambda x: np.bincount(np.asarray(x.tokens)[np.asarray(x.real) > 0], minlength=vocab_size)
    p, q = (counts / counts.sum() for counts in map(count, (a, b)))
    middle = (p + q) / 2
    kl = lambda x: np.sum(x * np.log(np.where(x > 0, x, 1.0) / np.where(x > 0, middle, 1.0)))
    return float(kl(p) + kl(q)) / 2


def clone(setup: Setup, folder: RunFolder, base: Params, rate: float) -> tuple[Params, dict[int, Any]]:
    """Fine-tune all members; return them, and by step what is measured on held-out sentences.

    `loss` is the demonstrations' cross-entropy under the policy, nats a token: the demonstrators' entropy,
    which no one knows, and the divergence from them. `divergence` is that of the tokens' frequencies.
    """
    rows, folder = as_demonstrations(setup.test_prompts, setup.test_responses), folder.sub("cloning")
    objective = next_token_objective(setup.lm)
    loss = jax.jit(jax.vmap(lambda p: objective(p, None, rows, jax.random.key(0), None)[0]))
    prompts = setup.draw_prompts(rlhf_setup.SAMPLES, setup.test_prompts, 50)

    def evaluate(step: int, params: Params) -> None:
        if step not in setup.config.measured:
            return
        written = answer(setup, [params], prompts, 1, 51)
        texts = jax.tree.map(lambda x: x[:, :, 0], written.completions)
        members = (jax.tree.map(lambda x, m=m: x[m], texts) for m in range(len(texts.tokens)))
        apart = [token_divergence(x, setup.test_responses, setup.config.vocab_size) for x in members]
        found = {"loss": loss(params), "divergence": apart, "gold": written.gold.mean((1, 2))}
        folder.write_json(f"measured_{step:05d}.json", found | format_shares(setup, texts))

    evaluate(0, base)
    how = {"rate": rate, "chunk": 5, "on_chunk": lambda step, state, _: evaluate(step, state.params)}
    params, _ = rlhf.fine_tune(setup, folder, base, **how)
    return params, rlhf.read_steps(folder, "measured")


def tune_cloning(setup: Setup, folder: RunFolder, base: Params) -> dict[str, np.ndarray]:
    """Fine-tune the tuning seeds at every rate; return the gold reward of their answers [R, seeds]."""
    config = setup.config
    seeds = np.tile(np.arange(config.tuning_seeds), len(config.sft_rates))
    take = lambda tree: jax.tree.map(lambda x: x[seeds], tree)
    rates = jnp.repeat(jnp.asarray(config.sft_rates), config.tuning_seeds)
    how = {"rate": rates, "keys": setup.keys(1)[seeds]}
    params, _ = rlhf.fine_tune(setup, folder.sub("tuning"), take(base), **how)
    return gold_by_rate(setup, params, base, seeds)


def gold_by_rate(setup: Setup, params: Params, reference: Params, seeds: np.ndarray) -> np.ndarray:
    """Return the mean gold reward [R, seeds] of runs [R x seeds, ...] on held-out prompts."""
    take = lambda tree: jax.tree.map(lambda x: x[seeds], tree)
    prompts = take(setup.draw_prompts(rlhf_setup.SAMPLES, setup.test_prompts, 52))
    policy = jax.vmap(functools.partial(init_policy, setup.lm))(params)
    samples = setup.write(policy, take(reference), prompts, setup.keys(53)[seeds])
    return samples.gold.mean(1).reshape(-1, len(np.unique(seeds)))


def improve(setup: Setup, folder: RunFolder, sft: Params, models: RewardModel) -> tuple[np.ndarray, Params]:
    """Run RLHF from every seed at every rate.

    Returns:
      The tuning seeds' gold reward [R, seeds], and all language models [R, M, ...].
    """
    config = setup.config
    hparams = RLHFHParams(kl_coef=config.kl_coef, kl_target=config.kl_target)
    keys, hparams = cross_rates(setup.keys(6), hparams, config.rlhf_rates)
    members = np.tile(np.arange(config.seeds), len(config.rlhf_rates))
    take = lambda tree: jax.tree.map(lambda x: x[members], tree)
    start = jax.vmap(functools.partial(init_policy, setup.lm))(take(sft))
    how = {"folder": folder.sub("rlhf"), "label": "4/4 RLHF        ", "chunk": 20}
    how |= {"show": ("objective/scores", "objective/kl"), "keys": keys, "params": start}
    how |= {"frozen": Frozen(take(sft), take(models))}
    params = train_members(setup.rlhf, hparams, config, config.rlhf_steps, **how).state.params["lm"]
    tuning = members < config.tuning_seeds
    tried = gold_by_rate(setup, jax.tree.map(lambda x: x[tuning], params), sft, members[tuning])
    return tried, jax.tree.map(lambda x: x.reshape(-1, config.seeds, *x.shape[1:]), params)


def judge(
    setup: Setup, folder: RunFolder, base: Params, stages: Sequence[Params], test: Answers, source: Any
) -> np.ndarray:
    """Return an independent judge's scores [reported seeds, N, G] of the test answers.

    Each seed's judge starts from the next seed's pre-trained model, and learns how other annotators compare
    answers of the next seed's stages, two pairs of each prompt, to the prompts of `source`.
    """
    config = setup.config
    prompts = setup.draw_prompts(config.comparisons // 2, source, 60)
    pool = answer(setup, stages, prompts, 1, 61)
    rng = np.random.default_rng([config.seed, 62])
    order = rng.permuted(np.broadcast_to(np.arange(len(stages)), pool.gold.shape), axis=-1)
    rows = jax.tree.map(
        lambda *x: np.concatenate(x, 1),
        *(compare_pair(pool, order[..., i : i + 2], rng, config.annotator_temperature) for i in (0, 2)),
    )
    following = lambda x: np.roll(np.asarray(x), -1, axis=0)
    rows, base = jax.tree.map(following, (rows, base))
    members = range(config.tuning_seeds, config.seeds)
    data = [[jax.tree.map(lambda x, m=m: x[m], rows) for m in members]]
    how = data, comparison_objective, [config.reward_learning_rate]
    return fit_and_score(Pool(setup.lm, base, pool, test), config, folder.sub("judge"), members, *how)[0]


def compare_pair(
    pool: Answers, pair: np.ndarray, rng: np.random.Generator, temperature: float
) -> Comparisons:
    """Let annotators compare two answers of each prompt, pair [M, N, 2]; return rows [M, N, ...]."""
    take = lambda x, i: np.take_along_axis(x, pair[..., i].reshape(*pair.shape[:2], *[1] * (x.ndim - 2)), 2)
    gold = [take(pool.gold, i)[..., 0] for i in (0, 1)]
    a, b = (jax.tree.map(lambda x, i=i: take(np.asarray(x), i)[:, :, 0], pool.completions) for i in (0, 1))
    rows = choose_completions(pool.prompts, a, b, compare(*gold, rng, temperature=temperature))
    return jax.tree.map(np.asarray, rows)


def win_rate(scores: np.ndarray, i: int, j: int) -> np.ndarray:
    """Return how often stage i's answers [..., N, stages, each] score above stage j's; equal ones, half."""
    gap = scores[..., i, :, None] - scores[..., j, None, :]
    return (0.5 + 0.5 * np.sign(gap)).mean((-3, -2, -1))


def teach(
    setup: Setup, folder: RunFolder, params: Params, rows: Mapping[str, Comparisons], test: Answers
) -> dict[str, np.ndarray]:
    """Fit reward models to the comparisons of each source, at the rate that the tuning seeds chose.

    Returns:
      source -> scores [reported seeds, N, G] of the test answers.
    """
    config, rates = setup.config, setup.config.reward_rates
    pool = Pool(setup.lm, params, test, test)
    tuning, seeds = range(config.tuning_seeds), range(config.tuning_seeds, config.seeds)
    of = lambda name, members: [jax.tree.map(lambda x, m=m: np.asarray(x)[m], rows[name]) for m in members]
    data = [of(name, tuning) for name in rows for _ in rates]
    scores = fit_and_score(
        pool, config, folder.sub("teaching_tuning"), tuning, data, comparison_objective, [*rates] * len(rows)
    )
    right = pair_accuracy(scores, test.gold[: config.tuning_seeds]).reshape(len(rows), len(rates), -1)
    chosen = choose_rates(dict(zip(rows, right, strict=True)), rates)
    data = [of(name, seeds) for name in rows]
    scores = fit_and_score(
        pool, config, folder.sub("teaching"), seeds, data, comparison_objective, [chosen[n] for n in rows]
    )
    return dict(zip(rows, scores, strict=True))


def halves(a: Comparisons, b: Comparisons) -> Comparisons:
    """Return as many rows [M, N, ...] as each has, the first half of one and the second half of the other."""
    half = a.prompt.real.shape[1] // 2
    return jax.tree.map(lambda x, y: np.concatenate([x[:, :half], y[:, half:]], 1), a, b)


def summarise(
    setup: Setup, tokens: PaddedTokens, gold: np.ndarray, scores: np.ndarray, taught: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return the stages' measures, their win rates, and how often judge and reward models are right.

    Args:
      setup: of the run.
      tokens: [M, N, G, C] the test answers, G = stages x each.
      gold: [M, N, G].
      scores: [M, N, G] the judge's.
      taught: source -> scores [M, N, G].
    """
    split = lambda x: np.asarray(x).reshape(*x.shape[:2], len(STAGES), -1, *x.shape[3:])
    texts, reward, length = jax.tree.map(split, tokens), split(gold), split(tokens.real.sum(-1))
    stages = {}
    for i, name in enumerate(STAGES):
        own = jax.tree.map(lambda x, i=i: x[:, :, i].reshape(len(x), -1, x.shape[-1]), texts)
        means = {"gold": reward[:, :, i].mean((1, 2)), "length": length[:, :, i].mean((1, 2))}
        stages[name] = means | format_shares(setup, own)
    wins = {
        f"{STAGES[i]} > {STAGES[j]}": {"judge": win_rate(split(scores), i, j), "gold": win_rate(reward, i, j)}
        for i, j in COMPARED
    }
    among = {name: np.s_[:, :, [i]] for i, name in enumerate(STAGES) if i != 2}
    among |= {"all three": np.s_[:, :, [0, 1, 3]]}
    flat = lambda x, of: split(x)[of].reshape(*x.shape[:2], -1)
    right = lambda x: {name: pair_accuracy(flat(x, of), flat(gold, of)) for name, of in among.items()}
    judged = {"judge": right(scores), "the shorter answer": right(-tokens.real.sum(-1))}
    return {
        "stages": stages,
        "wins": wins,
        "judge": judged,
        "taught": {name: right(x) for name, x in taught.items()},
    }


def main(config: Config) -> None:
    """Train the stages, let the judge compare them, and teach reward models by each stage's answers."""
    started = time.monotonic()
    use_cpu_devices()
    setup = Setup(config)
    folder = config.open_folder()
    base, _ = rlhf.pretrain(setup, folder)
    tried = {"SFT": (config.sft_rates, tune_cloning(setup, folder, base))}
    best = {"SFT": int(tried["SFT"][1].mean(-1).argmax())}
    rate = config.sft_rates[best["SFT"]]
    sft, path = clone(setup, folder, base, rate)
    longer, _ = rlhf.fine_tune(
        setup, folder.sub("longer"), base, rate=rate, steps=config.longer * config.sft_steps
    )
    data, _, samples = rlhf.annotate(setup, sft)
    models, _ = rlhf.learn_reward(setup, folder, sft, data, samples)
    gold, policies = improve(setup, folder, sft, models)
    tried["RLHF"], best["RLHF"] = (config.rlhf_rates, gold), int(gold.mean(-1).argmax())
    stages = [base, sft, longer, jax.tree.map(lambda x: x[best["RLHF"]], policies)]

    half = len(setup.test_prompts.tokens) // 2
    learnt, asked = (jax.tree.map(lambda x, s=s: x[s], setup.test_prompts) for s in np.s_[:half, half:])
    test = answer(setup, stages, setup.draw_prompts(rlhf_setup.SAMPLES, asked, 7), 2, 8)
    scores = judge(setup, folder, base, stages, test, learnt)
    from_base = rlhf.annotate(setup, base)[0]
    rows = dict(zip(SOURCES, (from_base, data, halves(from_base, data)), strict=True))
    taught = teach(setup, folder, sft, rows, test)

    reported = lambda tree: jax.tree.map(lambda x: np.asarray(x)[config.tuning_seeds :], tree)
    tokens, gold = reported(test.completions), test.gold[config.tuning_seeds :]
    path = {step: reported(jax.tree.map(np.array, row)) for step, row in path.items()}
    least = token_divergence(setup.test_responses, setup.responses, config.vocab_size)
    found = summarise(setup, tokens, gold, scores, taught)
    report(folder, tried, found | {"path": path, "least divergence": least})
    draw_judged(folder, found)
    draw_cloning(folder, found["taught"], path, least)
    print(f"\nfigures and results.json are in {folder.path}; {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    cli.main(Config, main)
