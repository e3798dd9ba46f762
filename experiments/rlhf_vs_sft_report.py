"""Measures, tables and figures of `rlhf_vs_sft.py`."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from answers import pair_accuracy
from rlhf_setup import Setup

from jaxrl_align.runtime import plots, statistics
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.types import PaddedTokens

STAGES = ("pre-trained", "SFT", "SFT, longer", "RLHF")
COMPARED = ((1, 0), (3, 1), (3, 2), (3, 0), (2, 1))
"""Pairs of stages that the judge compares."""
PATH = {
    "loss": ("held-out demonstrations", "cross-entropy [nats a token]", ".3f"),
    "divergence": ("token frequencies", "divergence from demonstrations [nats]", ".3f"),
    "stops": ("answers that stop", "share of answers", ".3f"),
    "sentence": ("after a full stop", "share of answers", ".3f"),
    "gold": ("gold reward", "gold reward", ".2f"),
}
"""Measure along fine-tuning -> its heading, axis and format."""


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


def report(folder: RunFolder, tried: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Print the rates tried and all tables, and write results.json.

    Args:
      folder: of the run.
      tried: of each training its rates, and the gold reward of each on the tuning seeds [R, seeds].
      found: `summarise`'s measures, the `path` of fine-tuning by step, and its `least divergence`.
    """
    print("\nlearning rates tried, on other seeds than are reported: gold reward")
    for name, (rates, gold) in tried.items():
        cells = zip(rates, np.mean(gold, 1), strict=True)
        print(f"  {name:14}" + "".join(f"{f'{rate:g}: {mean:.2f}':>16}" for rate, mean in cells))
    seeds = len(found["stages"]["SFT"]["gold"])
    print(f"\n{seeds} seeds, 95% t interval; differences are paired by seed")
    print(f"  {'':14}{'gold reward':>16}{'tokens':>16}{'whole sentences [%]':>24}")
    for name, row in found["stages"].items():
        cells = statistics.mean_text(row["gold"], ".2f"), statistics.mean_text(row["length"], ".1f")
        print(f"  {name:14}{cells[0]:>16}{cells[1]:>16}{statistics.share_text(row['sentence']):>24}")
    print(f"\n  {'wins [%]':26}{'the judge':>24}{'gold reward':>24}")
    for name, row in found["wins"].items():
        print(f"  {name:26}{statistics.share_text(row['judge']):>24}{statistics.share_text(row['gold']):>24}")
    print("\n  right by the gold reward [%], on test pairs of answers of")
    places = list(found["judge"]["judge"])
    print(f"  {'':26}" + "".join(f"{place:>24}" for place in places))
    taught = found["taught"]
    for name, row in {**found["judge"], **{f"taught by {k}": row for k, row in taught.items()}}.items():
        print(f"  {name:26}" + "".join(f"{statistics.share_text(row[place]):>24}" for place in places))
    for name in [k for k in taught if k != "pre-trained"]:
        gains = (taught[name][place] - taught["pre-trained"][place] for place in places)
        cells = (statistics.mean_text(100 * gain, "+.1f") for gain in gains)
        print(f"  {name + ' less pre-trained':26}" + "".join(f"{cell:>24}" for cell in cells))
    for name, right in found["labels"].items():
        print(
            f"  annotators agree with the gold reward on {statistics.share_text(right)}% of answers of {name}"
        )
    print(f"\n  {'fine-tuning, step':18}" + "".join(f"{head:>26}" for head, _, _ in PATH.values()))
    for step, row in found["path"].items():
        cells = (statistics.mean_text(row[key], form) for key, (_, _, form) in PATH.items())
        print(f"  {step:<18}" + "".join(f"{cell:>26}" for cell in cells))
    print(f"  token frequencies of held-out and learnt demonstrations: {found['least divergence']:.3f}")
    folder.write_json("results.json", {"tried": tried, **found})


def draw_judged(folder: RunFolder, found: Mapping[str, Any]) -> None:
    """Write judged.png: gold reward of the stages, and win rates by the judge and by the gold reward."""
    fig, (left, right) = plots.panels(1, 2, size=(11, 3.8))
    names = list(found["stages"])
    mean, half = statistics.mean_interval([found["stages"][name]["gold"] for name in names], axis=1)
    left.errorbar(range(len(names)), mean, half, fmt="o", color="black", capsize=3)
    left.set_xticks(range(len(names)), names)
    left.set(ylabel="gold reward", xlim=(-0.5, len(names) - 0.5), title="hidden reward of the answers")
    place = np.arange(len(found["wins"]))[::-1]
    for shift, by, marker, color in ((0.12, "judge", "o", plots.COLORS[0]), (-0.12, "gold", "s", "black")):
        mean, half = statistics.mean_interval([100 * row[by] for row in found["wins"].values()], axis=1)
        ends = np.stack([mean - np.maximum(mean - half, 0.0), np.minimum(mean + half, 100.0) - mean])
        look = {"fmt": marker, "color": color, "capsize": 3, "markersize": 5}
        name = {"judge": "independent judge", "gold": "gold reward"}[by]
        right.errorbar(mean, place + shift, xerr=ends, label=name, **look)
    right.axvline(50.0, color="#777777", linestyle=":")
    right.set_yticks(place, list(found["wins"]))
    right.set(xlim=(0, 100), xlabel="wins [%]", title="answers to one prompt, compared")
    right.legend(fontsize=8, loc="lower left")
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
        plots.curve_with_interval(form, steps, values, {"stops": "stop", "sentence": "whole sentence"}[key])
        form.lines[-1].set_linestyle(style)
    form.set(title="format of the answers", ylabel="share of answers", ylim=(0, 1))
    form.legend(fontsize=8)
    for ax in (loss, apart, form):
        ax.set_xlabel("steps of fine-tuning")
    for i, (name, row) in enumerate(taught.items()):
        mean, half = statistics.mean_interval([100 * values for values in row.values()], axis=1)
        x = np.arange(len(row)) + 0.18 * (i - 1)
        lessons.errorbar(x, mean, half, fmt="os^"[i], color=plots.COLORS[i], capsize=2, label=name)
    lessons.set_xticks(range(len(row)), list(row), fontsize=8)
    lessons.set(title="reward models", ylabel="right by gold [%]", xlabel="test pairs of answers of")
    lessons.legend(fontsize=8, title="taught by answers of", title_fontsize=8)
    plots.save_figure(fig, folder.path / "cloning.png")
