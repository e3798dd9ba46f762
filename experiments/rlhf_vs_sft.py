"""RLHF, fine-tuning and pre-training before an independent judge; what fine-tuning by imitation does.

The stages are those of `rlhf.py`, smaller (width 64, one layer). The judge is a second reward model: another
seed's pre-trained model, taught by other annotators' comparisons of that seed's stages, on held-out prompts
that are not asked again. It tells stages apart, and need not know much within one. "SFT, longer" imitates for
four times as many steps.

Fine-tuning is behavioural cloning (lecture 002, F11). Measured along it, on held-out sentences: the
cross-entropy of the demonstrations, which is the divergence from the demonstrators plus their entropy, a
constant; the Jensen-Shannon divergence of the answers' token frequencies from the demonstrations'; and the
format. Then reward models are taught by 1,024 comparisons of each source, all from the same SFT model. None
of the pre-trained model's answers ends, so that its comparisons say nothing of how to end, and annotators
agree less on them.

2 seeds choose the rates and 6 others are reported. Of SFT's and RLHF's rates the largest tried may be taken:
then the gap between the two is that at these rates. SFT at 1e-2 was tried afterwards, on the 2 seeds.
"""

import functools
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
from rlhf_vs_sft_report import draw_cloning, draw_judged, format_shares, report, summarise, token_divergence
from stages import StagesConfig

from jaxrl_align.actors.text import Frozen
from jaxrl_align.align import RewardModel, RLHFHParams, choose_completions, comparison_objective, init_policy
from jaxrl_align.feedback.annotators import compare
from jaxrl_align.pretrain.lm import next_token_objective
from jaxrl_align.runtime import Claim, cli
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import cross_rates, train_members
from jaxrl_align.runtime.mesh import use_cpu_devices
from jaxrl_align.types import Comparisons, PaddedTokens, Params

CLAIM = Claim(
    "RLHF beats supervised fine-tuning, which beats pre-training, before an independent judge; fine-tuning "
    "is behavioural cloning, which moves the answers towards the demonstrations and their format, so that "
    "comparisons of them teach a reward model more.",
    rows=("F11", "F13"),
    minutes=15,
)
SOURCES = ("pre-trained", "SFT", "half of each")
"""Whose answers are compared to teach a reward model."""


@dataclass(frozen=True)
class Config(StagesConfig):
    """The stages, the judge, and the reward models that are taught by different answers."""

    out: str = "runs/rlhf_vs_sft"
    vocab_size: int = 1024
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
    """Learning rates of fine-tuning that are tried."""
    rlhf_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Learning rates of RLHF that are tried."""
    reward_rates: tuple[float, ...] = (1.5e-4, 5e-4, 1.5e-3)
    """Of the taught reward models, chosen for each source."""

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes of training."""
        super().__post_init__()
        self.require(measured=0, longer=2, comparisons=10)
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
    seeds = np.tile(config.tuning, len(config.sft_rates))
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


def teach(
    setup: Setup, folder: RunFolder, params: Params, rows: Mapping[str, Comparisons], test: Answers
) -> tuple[dict[str, np.ndarray], Any]:
    """Fit reward models to the comparisons of each source, at the rate that the tuning seeds chose.

    Returns:
      source -> scores [reported seeds, N, G] of the test answers, and the table of the rates tried.
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
    chosen, tried = choose_rates(dict(zip(rows, right, strict=True)), rates)
    data = [of(name, seeds) for name in rows]
    scores = fit_and_score(
        pool, config, folder.sub("teaching"), seeds, data, comparison_objective, [chosen[n] for n in rows]
    )
    return dict(zip(rows, scores, strict=True)), tried


def halves(a: Comparisons, b: Comparisons) -> Comparisons:
    """Return as many rows [M, N, ...] as each has, the first half of one and the second half of the other."""
    half = a.prompt.real.shape[1] // 2
    return jax.tree.map(lambda x, y: np.concatenate([x[:, :half], y[:, half:]], 1), a, b)


def main(config: Config) -> None:
    """Train the stages, let the judge compare them, and teach reward models by each stage's answers."""
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
    data, margin, samples = rlhf.annotate(setup, sft)
    models, _ = rlhf.learn_reward(setup, folder, sft, data, samples)
    gold, policies = improve(setup, folder, sft, models)
    tried["RLHF"], best["RLHF"] = (config.rlhf_rates, gold), int(gold.mean(-1).argmax())
    stages = [base, sft, longer, jax.tree.map(lambda x: x[best["RLHF"]], policies)]

    half = len(setup.test_prompts.tokens) // 2
    learnt, asked = (jax.tree.map(lambda x, s=s: x[s], setup.test_prompts) for s in np.s_[:half, half:])
    test = answer(setup, stages, setup.draw_prompts(rlhf_setup.SAMPLES, asked, 7), 2, 8)
    scores = judge(setup, folder, base, stages, test, learnt)
    from_base, base_margin, _ = rlhf.annotate(setup, base)
    rows = dict(zip(SOURCES, (from_base, data, halves(from_base, data)), strict=True))
    taught, teaching = teach(setup, folder, sft, rows, test)

    reported = lambda tree: jax.tree.map(lambda x: np.asarray(x)[config.tuning_seeds :], tree)
    tokens, gold = reported(test.completions), test.gold[config.tuning_seeds :]
    path = {
        step: {k: np.array(x)[config.tuning_seeds :] for k, x in row.items()} for step, row in path.items()
    }
    least = token_divergence(setup.test_responses, setup.responses, config.vocab_size)
    found = summarise(setup, tokens, gold, scores, taught)
    margins = dict(zip(SOURCES, (base_margin, margin), strict=False))
    found["labels"] = {name: (x[config.tuning_seeds :] > 0).mean(1) for name, x in margins.items()}
    draw_judged(folder, found)
    draw_cloning(folder, found["taught"], path, least)
    found |= {"path": path, "least divergence": least}
    report(folder, config, CLAIM, tried, teaching, found)


if __name__ == "__main__":
    cli.main(Config, main)
