"""Measures, tables, verdict and figures of `rlhf_vs_sft.py`."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from answers import pair_accuracy
from rates import rates_table
from rlhf_setup import Setup

from jaxrl_align.runtime import (
    Claim,
    Interval,
    RunFolder,
    mean_interval,
    paired_interval,
    plots,
    t_interval,
    write_result,
)
from jaxrl_align.types import PaddedTokens

STAGES = ("pre-trained", "SFT", "SFT, longer", "RLHF")
COMPARED = ((1, 0), (3, 1), (3, 2), (3, 0), (2, 1))
"""Pairs of stages that the judge compares."""
PATH = {
    "loss": ("held-out demonstrations", "cross-entropy [nats a token]", (0.0, np.inf)),
    "divergence": ("token frequencies", "divergence from demonstrations [nats]", (0.0, np.log(2))),
    "stops": ("answers that stop", "share of answers", (0.0, 1.0)),
    "sentence": ("after a full stop", "share of answers", (0.0, 1.0)),
    "gold": ("gold reward", "gold reward", (0.0, 5.0)),
}
"""Measure along fine-tuning -> its heading, axis and bounds."""


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


def win_rate(scores: np.ndarray, i: int, j: int) -> np.ndarray:
    """Return how often stage i's answers [..., N, stages, each] score above stage j's; equal ones, half."""
    gap = scores[..., i, :, None] - scores[..., j, None, :]
    return (0.5 + 0.5 * np.sign(gap)).mean((-3, -2, -1))


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


def percent(x: Any) -> Interval:
    """Return the mean of shares [seeds] in per cent."""
    return t_interval(100 * np.asarray(x), bounds=(0, 100))


def follow(path: Mapping[int, Any]) -> dict[str, Interval]:
    """Return what each measure along fine-tuning is at the end less at the start, paired by seed."""
    first, last = path[min(path)], path[max(path)]
    width = {key: high - low for key, (_, _, (low, high)) in PATH.items()}
    return {key: paired_interval(last[key], first[key], bounds=(-w, w)) for key, w in width.items()}


def judge_claim(
    wins: Mapping[str, Mapping[str, Interval]], moved: Mapping[str, Interval], gains: Mapping[str, Interval]
) -> dict[str, bool]:
    """Return which parts of the claim hold.

    Args:
      wins: by pair of stages and judge [%].
      moved: along fine-tuning, as `follow` returns it.
      gains: what SFT's comparisons teach more than the pre-trained model's [points], by whose answers.
    """
    pairs = [f"{STAGES[i]} > {STAGES[j]}" for i, j in COMPARED[:3]]
    by = {"judge": "by the judge", "gold": "by the gold reward"}
    checks = {
        f"{pair}, {text}, in more than half of all pairs": wins[pair][key].low > 50
        for key, text in by.items()
        for pair in pairs
    }
    return checks | {
        "fine-tuning moves the answers' token frequencies towards the demonstrations'": (
            moved["divergence"].high < 0
        ),
        "it lowers the cross-entropy of held-out demonstrations": moved["loss"].high < 0,
        "it teaches their format, a stop after a full stop": moved["sentence"].low > 0,
        "its answers' comparisons teach more about such answers": gains["SFT"].low > 0,
        "and about the answers of all three stages": gains["all three"].low > 0,
        "and about RLHF's": gains["RLHF"].low > 0,
    }


def tabulate(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of stages, wins, judges, annotators and fine-tuning."""
    taught, right = found["taught"], dict(found["judge"])
    right |= {f"taught by {name}": row for name, row in found["taught"].items()}
    rows = {name: {of: percent(x) for of, x in row.items()} for name, row in right.items()}
    rows |= {
        f"{name} less pre-trained [points]": teach_more(taught[name], taught["pre-trained"])
        for name in taught
        if name != "pre-trained"
    }
    return {
        "answers to held-out prompts": {
            name: {
                "gold reward": t_interval(row["gold"], bounds=(0, 5)),
                "tokens": t_interval(row["length"], bounds=(0, np.inf)),
                "whole sentences [%]": percent(row["sentence"]),
            }
            for name, row in found["stages"].items()
        },
        "wins [%]": {
            name: {"the judge": percent(row["judge"]), "gold reward": percent(row["gold"])}
            for name, row in found["wins"].items()
        },
        "right by the gold reward [%], on test pairs of answers of": rows,
        "annotators agree with the gold reward [%]": {
            f"on answers of {name}": {"pairs": percent(x)} for name, x in found["labels"].items()
        },
        "along fine-tuning": {
            f"step {step}": {head: t_interval(row[key], bounds=b) for key, (head, _, b) in PATH.items()}
            for step, row in found["path"].items()
        },
    }


def teach_more(more: Mapping[str, np.ndarray], less: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    """Return how much more often one taught reward model is right than another [points], by whose answers."""
    return {of: paired_interval(100 * more[of], 100 * less[of], bounds=(-100, 100)) for of in more}


def report(
    folder: RunFolder, config: Any, claim: Claim, tried: Mapping[str, Any], teaching: Any, found: Any
) -> None:
    """Write the result.

    Args:
      folder: of the run.
      config: of the run.
      claim: the experiment's.
      tried: of each training its rates, and the gold reward of each on the tuning seeds [R, seeds].
      teaching: the table of the taught reward models' rates.
      found: `summarise`'s measures, the `path` of fine-tuning by step, its `least divergence`, and `labels`.
    """
    tables, gains = tabulate(found), teach_more(found["taught"]["SFT"], found["taught"]["pre-trained"])
    wins = {name: {by: percent(x) for by, x in row.items()} for name, row in found["wins"].items()}
    pairs = [f"{STAGES[i]} > {STAGES[j]}" for i, j in COMPARED[:3]]
    mean = {name: dict(zip(rates, np.mean(gold, 1), strict=True)) for name, (rates, gold) in tried.items()}
    taken = {name: max(row, key=row.__getitem__) for name, row in mean.items()}
    tables |= {
        "gold reward on the tuning seeds, by learning rate": rates_table(mean, taken),
        "accuracy of taught reward models on the tuning seeds [%], by learning rate": teaching,
    }
    write_result(
        folder,
        config,
        claim,
        headline={
            "RLHF's wins over SFT before the judge [%]": wins[pairs[1]]["judge"],
            "accuracy on SFT's answers, taught by SFT's comparisons less by pre-trained ones [points]": (
                gains["SFT"]
            ),
        },
        baselines={f"{pair} before the judge [%]": wins[pair]["judge"] for pair in (pairs[0], pairs[2])},
        checks=judge_claim(wins, follow(found["path"]), gains),
        tables=tables,
        notes=[
            "the token frequencies of held-out and of learnt demonstrations are "
            f"{found['least divergence']:.3f} nats apart"
        ],
        figures=["judged.png", "cloning.png"],
    )


def draw_judged(folder: RunFolder, found: Mapping[str, Any]) -> None:
    """Write judged.png: gold reward of the stages, and win rates by the judge and by the gold reward."""
    fig, (left, right) = plots.panels(1, 2, size=(11, 3.8))
    names = list(found["stages"])
    mean, half = mean_interval([found["stages"][name]["gold"] for name in names], axis=1)
    left.errorbar(range(len(names)), mean, half, fmt="o", color="black", capsize=3)
    left.set_xticks(range(len(names)), names)
    left.set(ylabel="gold reward", xlim=(-0.5, len(names) - 0.5), title="hidden reward of the answers")
    place = np.arange(len(found["wins"]))[::-1]
    for shift, by, marker, color in ((0.12, "judge", "o", plots.COLORS[0]), (-0.12, "gold", "s", "black")):
        mean, half = mean_interval([100 * row[by] for row in found["wins"].values()], axis=1)
        ends = np.stack([mean - np.maximum(mean - half, 0.0), np.minimum(mean + half, 100.0) - mean])
        look = {"fmt": marker, "color": color, "capsize": 3, "markersize": 5}
        name = {"judge": "independent judge", "gold": "gold reward"}[by]
        right.errorbar(mean, place + shift, xerr=ends, label=name, **look)
    right.axvline(50.0, color="#777777", linestyle=":")
    right.set_yticks(place, list(found["wins"]))
    right.set(xlim=(0, 100), xlabel="wins [%]", title="answers to one prompt, compared")
    fig.legend(loc="outside right upper", fontsize=8, frameon=False)
    plots.save_figure(fig, folder.path / "judged.png")


def draw_cloning(folder: RunFolder, taught: Mapping[str, Any], path: Mapping[int, Any], least: float) -> None:
    """Write cloning.png: divergence and format along fine-tuning, and what its answers teach.

    Args:
      folder: of the run.
      taught: source -> pairs of whose answers -> accuracy [seeds] of the reward model.
      path: step -> measures [seeds].
      least: the divergence between two samples of demonstrations.
    """
    fig, (loss, apart, form, lessons) = plots.panels(1, 4, size=(16, 3.8))
    steps = list(path)
    for ax, key in ((loss, "loss"), (apart, "divergence")):
        plots.curve_with_interval(ax, steps, np.array([row[key] for row in path.values()]), key)
        ax.set(title=PATH[key][0], ylabel=PATH[key][1])
    apart.axhline(least, color="#777777", linestyle=":", label="between demonstrations")
    apart.set_ylim(0.0, None)
    apart.legend(fontsize=8)
    for key, style in (("stops", "-"), ("sentence", "--")):
        values = np.array([row[key] for row in path.values()])
        name = {"stops": "stop", "sentence": "whole sentence"}[key]
        plots.curve_with_interval(form, steps, values, name, bounds=(0, 1))
        form.lines[-1].set_linestyle(style)
    form.set(title="format of the answers", ylabel="share of answers", ylim=(0, 1))
    form.legend(fontsize=8)
    for ax in (loss, apart, form):
        ax.set_xlabel("steps of fine-tuning")
    for i, (name, row) in enumerate(taught.items()):
        mean, half = mean_interval([100 * values for values in row.values()], axis=1)
        x = np.arange(len(row)) + 0.18 * (i - 1)
        ends = np.abs(np.clip([mean - half, mean + half], 0.0, 100.0) - mean)
        lessons.errorbar(x, mean, ends, fmt="os^"[i], color=plots.COLORS[i], capsize=2, label=name)
    lessons.set_xticks(range(len(row)), list(row), fontsize=8)
    lessons.set(title="reward models", ylabel="right by gold [%]", xlabel="test pairs of answers of")
    lessons.legend(fontsize=8, title="taught by answers of", title_fontsize=8)
    plots.save_figure(fig, folder.path / "cloning.png")


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("rlhf_vs_sft")
