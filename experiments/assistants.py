"""Stub docstring, replaced after measuring."""

import time
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from assistants_data import Split, read_pairs, split_pairs
from assistants_model import write_published
from assistants_report import draw, report
from assistants_rules import check_rules
from assistants_stages import (
    STAGES,
    Setup,
    align,
    ask,
    choose_alignment,
    choose_cloning,
    fine_tune,
    learn_reward,
    pretrain,
)

from jaxrl_align.data.probes import ASSISTANCE_PROMPTS
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import MembersConfig
from jaxrl_align.runtime.mesh import use_cpu_devices

Part = Literal["scratch", "published"]


@dataclass(frozen=True)
class Config(MembersConfig):
    """Small models from text to assistant, and a published one with and without its template."""

    out: str = "runs/assistants"
    seeds: int = 4
    """Reported members."""
    tuning_seeds: int = 2
    """Further members, on whom alone the rates are chosen."""
    parts: tuple[Part, ...] = ("scratch", "published")
    vocab_size: int = 2048
    width: int = 128
    layers: int = 4
    heads: int = 4
    prompt_length: int = 40
    response_length: int = 40
    """Tokens, the stop token included."""
    words: int = 20_000
    """Of each children's book."""
    lists: float = 0.3
    """Share of the pre-training windows that come from lists of instructions; the rest is books."""
    pretrain_steps: int = 700
    pretrain_batch: int = 8
    pretrain_rate: float = 3e-3
    sft_steps: int = 250
    sft_rates: tuple[float, ...] = (1e-3, 3e-3, 6e-3)
    """The one with the least cross-entropy of the validation pairs is taken."""
    reward_steps: int = 100
    reward_rate: float = 5e-4
    batch_size: int = 16
    """Rows a step of fine-tuning and of the reward model."""
    rlhf_steps: int = 60
    rlhf_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    """The one with the most answers to the validation prompts is taken."""
    prompts_per_step: int = 8
    group_size: int = 4
    kl_coef: float = 0.04
    model: str | None = None
    """A Hugging Face folder with a chat template; none means SmolLM2-135M-Instruct."""
    model_items: int = 60
    """Of the held-out instructions."""
    model_tokens: int = 48
    """The most that the published model writes."""

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes of training."""
        self.require(
            seeds=2, tuning_seeds=1, pretrain_steps=1, sft_steps=1, reward_steps=1, rlhf_steps=1, group_size=2
        )
        if not 0.0 < self.lists < 1.0:
            raise ValueError(f"lists must lie between 0 and 1; got {self.lists}")


def train(config: Config, folder: RunFolder, split: Split) -> dict[str, Any]:
    """Train all stages, and let each member of each stage write to the lecture's and the held-out prompts.

    Returns:
      `sft` and `rlhf`, the rates tried and what chose among them; `reward`, the shares [M] of validation
      comparisons that the reward models order rightly, by whose text is worse; `written` {stage: [M][N]}.
    """
    setup = Setup(config, split)
    base = pretrain(setup, folder)
    cloning = folder.once("sft_rates.json", choose_cloning, setup, folder, base)
    rate = cloning["rates"][int(np.argmin(np.mean(cloning["nats"], 1)))]
    sft = fine_tune(setup, folder.sub("sft"), base, rate, setup.keys(1))
    model, right = learn_reward(setup, folder, base, sft)
    tried = folder.once("rlhf_rates.json", choose_alignment, setup, folder, sft, model)
    rate = tried["rates"][int(np.argmax(np.mean(tried["answers"], 1)))]
    base, sft, model = jax.tree.map(lambda x: x[: config.seeds], (base, sft, model))
    rlhf = align(setup, folder.sub("rlhf"), sft, model, rate, setup.keys(8, config.seeds))
    prompts = [*ASSISTANCE_PROMPTS, *(pair.prompt for pair in split.test)]
    written = {n: ask(setup, p, prompts, 10) for n, p in zip(STAGES, (base, sft, rlhf), strict=True)}
    reward = {name: x[: config.seeds] for name, x in right.items()}
    return {"sft": cloning, "rlhf": tried, "reward": reward, "written": written}


def main(config: Config) -> None:
    """Measure the rules' own error, run the parts, and report."""
    started = time.monotonic()
    use_cpu_devices()
    folder = config.open_folder()
    split = split_pairs(read_pairs())
    found: dict[str, Any] = {"rules": check_rules(split.test)}
    if "scratch" in config.parts:
        found["scratch"] = train(config, folder, split)
    if "published" in config.parts:
        prompts = [*ASSISTANCE_PROMPTS, *(pair.prompt for pair in split.test[: config.model_items])]
        found["published"] = folder.once("published.json", write_published, config, prompts)
    draw(folder, report(folder, found, [pair.prompt for pair in split.test]))
    print(f"figure, results.json and texts.json are in {folder.path}; {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    cli.main(Config, main)
