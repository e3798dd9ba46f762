"""Figures and tables of `rlhf.py`."""

from typing import Any, NamedTuple

import numpy as np

from jaxrl_align.runtime import plots
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.statistics import mean_interval, mean_text
from jaxrl_align.types import PaddedTokens

STAGES = ("pre-trained", "SFT", "RLHF")
CONTROLS = ("stop penalty alone", "reward model alone")
"""RLHF on half of its reward: every score 0, or an answer without a stop token scored like any other."""


class Samples(NamedTuple):
    """Answers of every member's policy: M members, N prompts."""

    prompts: PaddedTokens
    """[M, N, P]."""
    completions: PaddedTokens
    """[M, N, T]."""
    kl: np.ndarray
    """[M, N] nats, log pi - log pi_reference summed over the response."""
    gold: np.ndarray
    """[M, N] the hidden reward."""
    texts: list[list[str]]


def draw_losses(folder: RunFolder, losses: dict[str, np.ndarray]) -> None:
    """Write loss.png: next-token loss of the stages [steps, M], one after the other."""
    curves, start = {}, 0
    for name, loss in losses.items():
        curves[name] = (start + np.arange(len(loss)), loss)
        start += len(loss)
    path, title = folder.path / "loss.png", "Next-token training"
    plots.save_curves(path, "step", "loss [nats a token]", curves, title=title)


def draw_reward_model(folder: RunFolder, held_out: dict[int, Any], lines: dict[str, float]) -> None:
    """Write reward_model.png: held-out accuracy by step, from margins [M, N], beside reference lines."""
    accuracy = np.array([(np.array(margin) > 0).mean(-1) for margin in held_out.values()])
    curves = {"reward model": (list(held_out), accuracy)}
    curves |= {name: (list(held_out), [value] * len(held_out)) for name, value in lines.items()}
    path, title = folder.path / "reward_model.png", "Reward model against noisy annotators"
    plots.save_curves(path, "step", "held-out accuracy", curves, title=title, dashed=list(lines))


def draw_path(folder: RunFolder, path: dict[int, Any], spread: np.ndarray) -> None:
    """Write gold_against_kl.png: both rewards along RLHF, in deviations of the SFT policy's answers.

    Args:
      folder: where to.
      path: by step, `gold`, `kl` and `score`, each [M].
      spread: [M] deviation of the gold reward over SFT answers; the score has deviation 1.
    """
    root = np.sqrt(np.maximum([np.mean(row["kl"]) for row in path.values()], 0.0))
    gold = np.array([row["gold"] for row in path.values()])
    score = np.array([row["score"] for row in path.values()])
    rewards = {"reward model": score - score[0], "gold reward (hidden)": (gold - gold[0]) / spread}
    plots.save_curves(
        folder.path / "gold_against_kl.png",
        "square root of KL(policy, SFT) [sqrt nats]",
        "reward [deviations of SFT answers]",
        {name: (root, values) for name, values in rewards.items()},
        title="RLHF: the reward that is trained on, and the hidden one",
        bars=True,
    )


def show_samples(written: dict[str, Samples], prompts: list[str]) -> None:
    """Print how each stage's first member answers the first prompts."""
    wide = max(map(len, written)) + 1
    print("\nHeld-out prompts, answered by the first member:")
    for i, prompt in enumerate(prompts):
        print(f"\n  {prompt} ...")
        for name, samples in written.items():
            print(f"    {name:{wide}}{' '.join(samples.texts[0][i].split())}")


def report(
    folder: RunFolder, written: dict[str, Samples], accuracy: np.ndarray, lines: dict[str, float]
) -> None:
    """Print the reward model's accuracy and each stage's gold reward, KL and length; write results.json.

    Args:
      folder: where to.
      written: the samples of each stage.
      accuracy: [M] of the reward model on held-out comparisons.
      lines: reference accuracies on the same comparisons.
    """
    seeds = len(accuracy)
    results: dict[str, Any] = {"seeds": seeds, "reward model accuracy": mean_interval(accuracy)} | lines
    print(f"\nHeld-out comparisons, accuracy over {seeds} seeds (mean +- half-width of the 95% t interval):")
    print("  {:44}{:.3f} +- {:.3f}".format("reward model", *results["reward model accuracy"]))
    for name, value in lines.items():
        print(f"  {name:44}{value:.3f}")
    wide = max(map(len, written)) + 1
    print(f"\n  {'':{wide}}{'gold reward':>18}{'KL to SFT [nats]':>20}{'length [tokens]':>20}")
    for name, samples in written.items():
        columns = {"gold": samples.gold, "kl": samples.kl, "length": samples.completions.real.sum(-1)}
        results[name] = {column: mean_interval(values.mean(1)) for column, values in columns.items()}
        cells = (f"{mean:.2f} +- {half:.2f}" for mean, half in results[name].values())
        print(
            f"  {name:{wide}}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, (18, 20, 20), strict=True))
        )
    print()
    for worse, better in zip(STAGES, STAGES[1:], strict=False):
        (low, low_half), (high, high_half) = results[worse]["gold"], results[better]["gold"]
        holds = bool(high - high_half > low + low_half)
        results[f"{better} > {worse}"] = holds
        print(f"{better} > {worse}: " + ("holds, the intervals lie apart" if holds else "does NOT hold here"))
    for name in (name for name in CONTROLS if name in written):
        gain = lambda other, name=name: (written[name].gold - written[other].gold).mean(1)
        results[name] |= {f"less {other}": mean_interval(gain(other)) for other in STAGES[1:]}
        print(f"{name}: " + ", ".join(f"{mean_text(gain(x), '+.2f')} against {x}" for x in STAGES[1:]))
    folder.write_json("results.json", results)
