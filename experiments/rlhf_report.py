"""Figures, samples and the result of `rlhf.py`."""

from typing import Any, NamedTuple

import numpy as np

from jaxrl_align.runtime import Claim, Interval, paired_interval, plots, t_interval, write_result
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.types import PaddedTokens

STAGES = ("pre-trained", "SFT", "RLHF")
CONTROLS = ("stop penalty alone", "reward model alone")
"""RLHF on half of its reward: every score 0, or an answer without a stop token scored like any other."""
SHORTER = "length alone (the shorter answer)"
GOLD = (0.0, 5.0)
"""What the gold reward can be."""
FIGURES = ("gold_against_kl.png", "reward_model.png", "loss.png")


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


def draw_reward_model(folder: RunFolder, held_out: dict[int, Any], lines: dict[str, np.ndarray]) -> None:
    """Write reward_model.png: held-out accuracy by step, from margins [M, N], beside lines [M]."""
    accuracy = np.array([(np.array(margin) > 0).mean(-1) for margin in held_out.values()])
    curves = {"reward model": (list(held_out), accuracy)}
    curves |= {name: (list(held_out), [value.mean()] * len(held_out)) for name, value in lines.items()}
    path, title = folder.path / "reward_model.png", "Reward model against noisy annotators"
    how: Any = {"title": title, "dashed": list(lines), "bounds": (0, 1)}
    plots.save_curves(path, "step", "held-out accuracy", curves, **how)


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


def compare_stages(written: dict[str, Samples]) -> dict[str, Interval]:
    """Return the differences of the gold reward between stages, and of the controls, paired by seed."""
    gold = {name: samples.gold.mean(1) for name, samples in written.items()}
    pairs = [(STAGES[1], STAGES[0]), (STAGES[2], STAGES[1])]
    pairs += [(name, stage) for name in CONTROLS if name in written for stage in STAGES[1:]]
    return {f"{a} less {b}": paired_interval(gold[a], gold[b], bounds=(-GOLD[1], GOLD[1])) for a, b in pairs}


def judge(gains: dict[str, Interval], over_length: Interval) -> dict[str, bool]:
    """Return which parts of the claim hold.

    Args:
      gains: of the gold reward, as `compare_stages` returns them.
      over_length: the reward model's accuracy less that of the shorter answer.
    """
    checks = {
        "SFT > pre-trained, by the gold reward": gains["SFT less pre-trained"].low > 0,
        "RLHF > SFT, by the gold reward": gains["RLHF less SFT"].low > 0,
        "the reward model orders held-out comparisons better than length does": over_length.low > 0,
    }
    if f"{CONTROLS[0]} less SFT" in gains:
        part = 0.25 * gains["RLHF less SFT"].low
        alone = gains[f"{CONTROLS[1]} less RLHF"]
        checks |= {
            "the stop penalty alone gains less than a quarter of RLHF's gain over SFT": (
                gains[f"{CONTROLS[0]} less SFT"].high < part
            ),
            "the reward model alone differs from RLHF by less than a quarter of it": (
                max(-alone.low, alone.high) < part
            ),
        }
    return checks


def tabulate(config: Any, written: dict[str, Samples]) -> dict[str, dict[str, Any]]:
    """Return each stage's gold reward, KL and length, and whether the KL is a finding."""
    controlled = f"a controller steers it to {config.kl_target:g}"
    columns = {
        "gold reward": (GOLD, lambda samples: samples.gold),
        "KL to SFT [nats]": ((0.0, np.inf), lambda samples: samples.kl),
        "length [tokens]": ((0.0, config.response_length), lambda samples: samples.completions.real.sum(-1)),
    }
    return {
        name: {
            column: t_interval(read(samples).mean(1), bounds=bounds)
            for column, (bounds, read) in columns.items()
        }
        | {"the KL is": "measured" if name in STAGES[:2] else controlled}
        for name, samples in written.items()
    }


def report(
    folder: RunFolder,
    config: Any,
    claim: Claim,
    written: dict[str, Samples],
    accuracy: dict[str, np.ndarray],
    note: str,
) -> None:
    """Write the result: each stage's gold reward, KL and length, and who orders held-out comparisons rightly.

    Args:
      folder: where to.
      config: of the run.
      claim: the experiment's.
      written: the samples of each stage.
      accuracy: [M] on held-out comparisons, the reward model's first.
      note: on the reward model.
    """
    gains, stages = compare_stages(written), tabulate(config, written)
    over_length = paired_interval(accuracy["reward model"], accuracy[SHORTER], bounds=(-1, 1))
    shares = {name: {"share": t_interval(x, bounds=(0, 1))} for name, x in accuracy.items()}
    write_result(
        folder,
        config,
        claim,
        headline={"gold reward of RLHF less SFT's, paired": gains["RLHF less SFT"]},
        baselines={f"gold reward, {name}": stages[name]["gold reward"] for name in STAGES[:2]},
        checks=judge(gains, over_length),
        tables={
            "answers to held-out prompts": stages,
            "gold reward, paired by seed": {name: {"difference": gain} for name, gain in gains.items()},
            "held-out comparisons ordered rightly": shares
            | {"reward model less length, paired": {"share": over_length}},
        },
        notes=[note],
        figures=FIGURES,
    )


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("rlhf")
