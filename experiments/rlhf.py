"""The whole road on one machine: pre-train, fine-tune on demonstrations, learn a reward, RLHF.

The text is CPython's language reference; a prompt is the first words of one of its sentences; simulated
annotators, who like finished sentences in plain words, compare pairs of answers with Bradley-Terry noise.
What they like, the gold reward, judges the end and is given to no stage. Every stage trains all seeds in one
program, and a step of RLHF (generate, score, GAE, all PPO epochs) is one jitted function. RLHF's distance
from SFT is no finding: a controller steers it to `--kl-target`.

RLHF is paid by the reward model and punished where an answer has no stop token. `--controls` tells the two
apart, in about twice the time: the same update with every score 0, and the same one in which an answer
without a stop token is scored like any other. `--lora` trains an adapter in place of all weights.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rlhf_setup
from rlhf_report import (
    CONTROLS,
    SHORTER,
    STAGES,
    Samples,
    draw_losses,
    draw_path,
    draw_reward_model,
    report,
    show_samples,
)
from rlhf_setup import Setup, as_demonstrations

from jaxrl_align.actors.text import Frozen
from jaxrl_align.align import reward_model as rm
from jaxrl_align.align.reward_learner import RewardHParams, make_reward_learner
from jaxrl_align.align.rlhf import RLHFHParams, init_policy
from jaxrl_align.checks import check_divides
from jaxrl_align.evaluate import report_pairs
from jaxrl_align.feedback.annotators import compare
from jaxrl_align.nets import init_lora, overlay
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner, sample_rows
from jaxrl_align.runtime import Claim, cli
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import MembersConfig, train_members, with_data
from jaxrl_align.runtime.mesh import use_cpu_devices
from jaxrl_align.types import Comparisons, Learner, PaddedTokens

CLAIM = Claim(
    "RLHF beats supervised fine-tuning, which beats pre-training, judged by a reward that none of the three "
    "was given; its reward model is right on comparisons that it did not learn.",
    rows=("F3", "F7", "F10", "F12", "F13"),
    minutes=3,
)
CONTROLLED = CLAIM._replace(text=f"{CLAIM.text} RLHF's gain is the reward model's.", minutes=6)
"""With `--controls`, which alone can tell."""


@dataclass(frozen=True)
class Config(MembersConfig):
    """The road from text to an aligned policy."""

    out: str = "runs/rlhf"
    seeds: int = 4
    corpus: str | None = None
    """A UTF-8 text file; none means CPython's language reference."""
    vocab_size: int = 1024
    """Tokens of the vocabulary, at most."""
    width: int = 128
    """Numbers in a token's hidden state."""
    layers: int = 2
    """Of the transformer."""
    heads: int = 4
    """Attention heads of a layer."""
    context: int = 64
    """Tokens the model can read."""
    prompt_length: int = 8
    """Tokens."""
    response_length: int = 24
    """Tokens, the stop token included."""
    pretrain_steps: int = 400
    """Updates of the pre-training."""
    pretrain_learning_rate: float = 3e-3
    """Learning rate of the pre-training."""
    sft_steps: int = 100
    """Updates of the fine-tuning on demonstrations."""
    sft_learning_rate: float = 1e-3
    """Learning rate of the fine-tuning."""
    comparisons: int = 2048
    """Pairs that the annotators compare for each member; a fifth is held out."""
    annotator_temperature: float = 0.5
    """Noise of the annotators' choice, in units of the gold reward."""
    reward_steps: int = 100
    """Updates of the reward model."""
    reward_learning_rate: float = 3e-4
    """Learning rate of the reward model."""
    rlhf_steps: int = 100
    """Updates of the policy by RLHF."""
    rlhf_learning_rate: float = 3e-4
    """Learning rate of the policy in RLHF."""
    prompts_per_step: int = 32
    """Prompts of an update."""
    epochs: int = 2
    """Passes over the answers of an update."""
    minibatches: int = 2
    """Gradient steps of a pass."""
    kl_coef: float = 0.05
    """Weight of the KL from the reference [reward a nat]."""
    kl_target: float = 8.0
    """Nats a sequence; the controller moves kl_coef towards it."""
    lora: bool = False
    """RLHF trains a LoRA adapter; the reference is the same model with the adapter off."""
    lora_rank: int = 8
    """Of the policy's LoRA."""
    controls: bool = False
    """Also run RLHF with the stop penalty alone and with the reward model alone."""

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes of training."""
        counts = {name: 1 for name, value in vars(self).items() if type(value) is int and name != "seed"}
        self.require(
            **counts | {"seeds": 2, "comparisons": 5}
        )  # one seed has no interval; a fifth is held out
        if self.annotator_temperature <= 0:
            raise ValueError(f"annotator_temperature must be above 0; got {self.annotator_temperature}")
        check_divides(self.minibatches, self.prompts_per_step, "minibatches", "prompts_per_step")


def pretrain(setup: Setup, folder: RunFolder) -> tuple[Any, np.ndarray]:
    """Predict the next token of the corpus; return parameters [M, ...] and the loss [steps, M]."""
    config, steps = setup.config, setup.config.pretrain_steps
    learner = make_lm_learner(setup.lm, setup.windows, total_steps=steps, warmup_steps=steps // 4)
    hparams = LMHParams(config.pretrain_learning_rate)
    # Drawn without compilation, as when the figures above were measured: it rounds otherwise in the last bit.
    start = jax.vmap(learner.init, (0, None))(setup.keys(0), hparams).params
    how = {"chunk": 20, "folder": folder.sub("pretrain"), "label": "1/4 pre-train   "}
    how |= {"keys": setup.keys(0), "params": start}
    trained = train_members(learner, hparams, config, steps, **how)
    return trained.state.params, trained.history["loss"]


def fine_tune(
    setup: Setup,
    folder: RunFolder,
    params: Any,
    *,
    rate: Any = None,
    steps: int | None = None,
    **options: Any,
) -> tuple[Any, np.ndarray]:
    """Imitate the demonstrations, completions alone; return parameters [M, ...] and the loss [steps, M].

    Args:
      setup: of the run.
      folder: of the run, or of this training where there are several.
      params: [M, ...].
      rate: [M] or one for all; None, the configuration's, as with `steps`.
      steps: until the rate has fallen to 0.
      options: of `train_members`, in place of those here.
    """
    config = setup.config
    rate = config.sft_learning_rate if rate is None else rate
    steps = config.sft_steps if steps is None else steps
    sample = sample_rows(as_demonstrations(setup.prompts, setup.responses), batch_size=32)
    learner = make_lm_learner(setup.lm, sample, total_steps=steps, warmup_steps=10)
    how = {"chunk": 20, "folder": folder.sub("sft"), "label": "2/4 fine-tune   "}
    how |= {"keys": setup.keys(1), "params": params} | options
    trained = train_members(learner, LMHParams(rate), config, steps, **how)
    return trained.state.params, trained.history["loss"]


def annotate(setup: Setup, params: Any) -> tuple[Comparisons, np.ndarray, Samples]:
    """Let annotators compare pairs of the SFT policy's answers.

    Returns:
      The comparisons [M, N, ...], the gold reward's margin of each choice [M, N], and half of the answers.
    """
    config = setup.config
    policy = jax.vmap(functools.partial(init_policy, setup.lm))(params)
    prompts = setup.draw_prompts(config.comparisons, setup.prompts, 1)
    a, b = (setup.write(policy, params, prompts, setup.keys(purpose)) for purpose in (2, 3))
    rng = np.random.default_rng([config.seed, 2])
    first = compare(a.gold, b.gold, rng, temperature=config.annotator_temperature)
    return (
        rm.choose_completions(prompts, a.completions, b.completions, first),
        np.where(first, a.gold - b.gold, b.gold - a.gold),
        a,
    )


def learn_reward(
    setup: Setup, folder: RunFolder, params: Any, data: Comparisons, samples: Samples
) -> tuple[rm.RewardModel, dict[int, np.ndarray]]:
    """Fit a reward model to the comparisons of each member.

    Returns:
      The model, normalised, and a dict from step to the held-out margins [M, N / 5] measured there.
    """
    config, lm = setup.config, setup.lm
    held_out = config.comparisons // 5
    train = jax.tree.map(lambda x: x[:, held_out:], data)
    test = jax.tree.map(lambda x: x[:, :held_out], data)
    folder = folder.sub("reward_model")
    measure = jax.jit(jax.vmap(lambda p, d: rm.score_margins(lm, rm.RewardModel(p), d)))

    def learner(data: Comparisons) -> Learner:
        return make_reward_learner(lm, sample_rows(data, batch_size=32), total_steps=config.reward_steps)

    def evaluate(step: int, params: Any) -> None:
        folder.write_json(f"held_out_{step:05d}.json", measure(params, test))

    keys, head_keys = setup.two_keys(4)
    start = jax.vmap(lambda key, p: rm.init_reward_params(key, lm, p))(head_keys, params)
    evaluate(0, start)
    how = {"chunk": 20, "folder": folder, "label": "3/4 reward model", "show": ("loss", "accuracy")}
    how |= {"on_chunk": lambda step, state, _: evaluate(step, state.params)}
    how |= {"keys": keys, "params": start, "frozen": train}
    hparams = RewardHParams(config.reward_learning_rate)
    trained = train_members(with_data(learner), hparams, config, config.reward_steps, **how)
    fit = jax.jit(jax.vmap(lambda p, *text: rm.normalise_scores(lm, rm.RewardModel(p), *text)))
    return fit(trained.state.params, samples.prompts, samples.completions), read_steps(folder, "held_out")


def align(
    setup: Setup,
    folder: RunFolder,
    params: Any,
    model: rm.RewardModel,
    prompts: PaddedTokens,
    learner: Learner | None = None,
) -> tuple[Any, Any, dict[int, dict]]:
    """Run RLHF from the SFT policy, in the folder's `rlhf`; None takes the setup's own learner.

    Returns:
      The policies [M, ...], the reference they are laid over, and a dict from step to gold reward, KL and
      score there.
    """
    config = setup.config
    keys, lora_keys = setup.two_keys(6)
    part, reference = params, params
    if config.lora:
        adapt = functools.partial(init_lora, rank=config.lora_rank, alpha=2 * config.lora_rank)
        part, constants = jax.vmap(adapt)(lora_keys, params)
        reference = jax.vmap(overlay)(params, constants)
    start = jax.vmap(functools.partial(init_policy, setup.lm))(part)
    folder = folder.sub("rlhf")

    def evaluate(step: int, policy: Any) -> None:
        if step > 20 and step % 20:  # most of the way is made early
            return
        samples = setup.write(policy, reference, prompts, setup.keys(5))
        rows = {"gold": samples.gold, "kl": samples.kl, "score": setup.score_answers(model, samples)}
        folder.write_json(f"evaluation_{step:05d}.json", {k: np.mean(v, 1) for k, v in rows.items()})

    evaluate(0, start)
    hparams = RLHFHParams(config.rlhf_learning_rate, kl_coef=config.kl_coef, kl_target=config.kl_target)
    how = {"folder": folder, "label": "4/4 RLHF        ", "show": ("objective/scores", "objective/kl")}
    how |= {"chunk": 5, "on_chunk": lambda step, state, _: evaluate(step, state.params)}
    how |= {"keys": keys, "params": start, "frozen": Frozen(reference, model)}
    trained = train_members(learner or setup.rlhf, hparams, config, config.rlhf_steps, **how)
    return trained.state.params, reference, read_steps(folder, "evaluation")


def align_controls(
    setup: Setup, folder: RunFolder, params: Any, model: rm.RewardModel, prompts: PaddedTokens
) -> dict[str, tuple[Any, Any]]:
    """Run RLHF on either half of its reward; return each policy and its reference, as `align` does."""
    silent = model._replace(gain=jnp.zeros_like(model.gain), bias=jnp.zeros_like(model.bias))
    unpunished = setup.make_rlhf(replace(setup.text, missing_stop="keep"))
    policies = {}
    for name, reward, learner in zip(CONTROLS, (silent, model), (setup.rlhf, unpunished), strict=True):
        policies[name] = align(setup, folder.sub(name), params, reward, prompts, learner)[:2]
    return policies


def read_steps(folder: RunFolder, name: str) -> dict[int, Any]:
    """Read back what a stage wrote along the way, by step."""
    files = sorted(folder.path.glob(f"{name}_*.json"))
    return {int(file.stem.rsplit("_", 1)[1]): folder.read_json(file.name) for file in files}


def main(config: Config) -> None:
    """Train the stages one after the other, and report."""
    use_cpu_devices()
    setup = Setup(config)
    folder = config.open_folder()
    losses = {}
    base, losses["pre-training"] = pretrain(setup, folder)
    sft, losses["fine-tuning"] = fine_tune(setup, folder, base)
    data, gold_margin, samples = annotate(setup, sft)
    model, held_out = learn_reward(setup, folder, sft, data, samples)
    test_prompts = setup.draw_prompts(rlhf_setup.SAMPLES, setup.test_prompts, 7)
    policies, reference, path = align(setup, folder, sft, model, test_prompts)

    whole = jax.vmap(functools.partial(init_policy, setup.lm))
    pairs = (whole(base), sft), (whole(sft), sft), (policies, reference)
    named = dict(zip(STAGES, pairs, strict=True))
    if config.controls:
        named |= align_controls(setup, folder, sft, model, test_prompts)
    write = lambda policy, reference: setup.write(policy, reference, test_prompts, setup.keys(8))
    written = {name: write(*pair) for name, pair in named.items()}
    test = slice(0, config.comparisons // 5)
    lengths = np.stack([side.real.sum(-1)[:, test] for side in (data.chosen, data.rejected)], -1)
    longer = lengths[..., 0] - lengths[..., 1]
    lines = {
        "annotators' agreement with the gold reward": (gold_margin[:, test] > 0).mean(1),
        SHORTER: np.where(longer == 0, 0.5, longer < 0).mean(1),
    }
    draw_path(folder, path, samples.gold.std(1))
    draw_reward_model(folder, held_out, lines)
    draw_losses(folder, losses)
    show_samples(written, [setup.tokenizer.decode(row) for row in test_prompts.tokens[0, :5]])
    margins = np.array(list(held_out.values())[-1])
    note = f"the reward model of the first seed: {report_pairs(margins[0], lengths[0])}"
    claim = CONTROLLED if config.controls else CLAIM
    report(folder, config, claim, written, {"reward model": (margins > 0).mean(1)} | lines, note)


if __name__ == "__main__":
    cli.main(Config, main)
