"""The commands ppo, grpo and rloo: a model learns from its own answers."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import numpy as np
from tyro.conf import OmitArgPrefixes

from jaxrl_align import align, feedback
from jaxrl_align.actors import make_group_actor, make_text_actor
from jaxrl_align.cli.datasets import divide_rows, encode_sft
from jaxrl_align.cli.options import (
    DataOptions,
    ModelOptions,
    RunOptions,
    TuningOptions,
)
from jaxrl_align.cli.runs.online import Algorithm, AnswerOptions, Scene, open_scene, run_online
from jaxrl_align.cli.tuning import start_tuning
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.types import Params, TokenBatch


@dataclass(frozen=True)
class PPO:
    """Reinforcement learning from a reward, with a critic (RLHF: Ziegler et al. 2019, Ouyang et al. 2022).

    Rows: {"prompt"} or {"messages"}, and any further fields for a reward function.
    """

    base: OmitArgPrefixes[ModelOptions]
    rows: OmitArgPrefixes[DataOptions]
    answers: OmitArgPrefixes[AnswerOptions]
    tuning: OmitArgPrefixes[TuningOptions] = TuningOptions()
    run: OmitArgPrefixes[RunOptions] = RunOptions(steps=50, batch_size=32)
    ppo_epochs: int = 2
    """Passes over each batch of answers."""
    minibatches: int = 2
    """Gradient steps of a pass; fewer answers are in memory at once."""
    clip: float = 0.2
    """How far the ratio of new to old policy earns."""
    value_coef: float = 0.1
    kl_coef: float = 0.05
    """Weight of the KL divergence from the model that training starts from, nats."""
    kl_target: float | None = None
    """Nats a response, that the weight is moved towards; None keeps it fixed."""
    kl_horizon: float = 10_000.0
    """Answers, over which the weight moves."""
    kl_penalty: Literal["token", "sequence", "loss"] = "token"
    """Where the divergence is paid: by each token, by the whole answer, or in the loss."""
    target_kl: float | None = None
    """Nats a token; an update ends at the first minibatch beyond 1.5 times this."""
    critic: Literal["head", "trunk", "reward-model"] = "head"
    """Where values come from: a head on the policy; a model of the critic's own, tuned as the policy is, from
    --model; or from the reward model, whose scores are the first values."""
    pretraining: str | None = None
    """Texts that the policy goes on learning to predict (PPO-ptx, Ouyang et al. 2022): rows as sft's, one
    drawn for each answer."""
    pretraining_coef: float = 1.0
    """Weight of their loss, nats a token."""


@dataclass(frozen=True)
class GroupOptions:
    """How answers to the same prompt are compared, and how often they are learnt from."""

    group_size: int = 8
    """Answers to each prompt."""
    updates: int = 1
    """Passes over each batch of answers."""
    minibatches: int = 1
    """Gradient steps of a pass; must divide the number of prompts."""
    clip: float | None = None
    """None takes the method's own."""
    kl_coef: float | None = None
    """Weight of the KL divergence from the model that training starts from; None takes the method's own."""


@dataclass(frozen=True)
class GRPO:
    """Group relative policy optimisation (Shao et al. 2024) and its kin: answers judged by each other.

    Rows: {"prompt"} or {"messages"}, and any further fields for a reward function.
    """

    base: OmitArgPrefixes[ModelOptions]
    rows: OmitArgPrefixes[DataOptions]
    answers: OmitArgPrefixes[AnswerOptions]
    tuning: OmitArgPrefixes[TuningOptions] = TuningOptions()
    run: OmitArgPrefixes[RunOptions] = RunOptions(steps=50, batch_size=4)
    group: OmitArgPrefixes[GroupOptions] = GroupOptions()
    method: Literal["grpo", "dr-grpo", "gspo", "reinforce++", "best-of-group"] = "grpo"
    """Dr. GRPO leaves out the divisions by length and deviation, GSPO clips whole answers, REINFORCE++
    whitens over the batch, best-of-group imitates the best answer (rejection sampling, expert iteration)."""


@dataclass(frozen=True)
class RLOO:
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024): answers judged by each other.

    Rows: {"prompt"} or {"messages"}, and any further fields for a reward function.
    """

    base: OmitArgPrefixes[ModelOptions]
    rows: OmitArgPrefixes[DataOptions]
    answers: OmitArgPrefixes[AnswerOptions]
    tuning: OmitArgPrefixes[TuningOptions] = TuningOptions()
    run: OmitArgPrefixes[RunOptions] = RunOptions(steps=50, batch_size=4)
    group: OmitArgPrefixes[GroupOptions] = GroupOptions()


METHODS: dict[str, tuple[align.GroupMethod, str]] = {
    "grpo": (align.GRPO, "GRPO (Shao et al. 2024, arXiv:2402.03300)"),
    "dr-grpo": (align.DR_GRPO, "Dr. GRPO (Liu et al. 2025, arXiv:2503.20783)"),
    "gspo": (align.GSPO, "GSPO (Zheng et al. 2025, arXiv:2507.18071)"),
    "reinforce++": (align.REINFORCE_PLUS_PLUS, "REINFORCE++ (Hu et al. 2025, arXiv:2501.03262)"),
    "best-of-group": (
        align.REJECTION_SAMPLING,
        "fine-tuning on the best of each group (Dong et al. 2023, RAFT, arXiv:2304.06767)",
    ),
    "rloo": (align.RLOO, "RLOO (Ahmadian et al. 2024, arXiv:2402.14740)"),
}


class Critic(NamedTuple):
    """A policy's parameters with its critic, and what the critic is laid over."""

    params: Params
    lm: LanguageModel | None = None
    """Of a trunk of its own."""
    frozen: Params | None = None
    trained: Params | None = None
    """What of the trunk trains."""


def start_critic(options: PPO, scene: Scene) -> Critic:
    """Return the critic as it starts.

    Raises:
      ValueError: for a reward that is no model, where the critic is to start from one.
    """
    base, part = scene.base, scene.tuned.part
    if options.critic == "head":
        return Critic(align.init_policy(base.lm, part))
    key = jax.random.key(options.run.seed + 1)
    if options.critic == "trunk":
        own = start_tuning(options.tuning, base, key)
        critic = align.init_policy(base.lm, own.part, trunk="separate")["critic"]
        return Critic({"lm": part, "critic": critic}, base.lm, own.frozen, own.part)
    judge = scene.judge
    if judge.model is None or judge.lm is None:
        raise ValueError(
            f"--critic reward-model needs a reward model; got --reward {judge.name}, a function; take "
            "--critic trunk"
        )
    source = base._replace(config=judge.lm.config, lm=judge.lm, params=judge.model.params["lm"])
    own = start_tuning(options.tuning, source, key)
    params = align.init_policy(base.lm, part, judge.model, trunk="separate")
    params["critic"]["lm"] = own.part
    return Critic(params, judge.lm, own.frozen, own.part)


def read_pretraining(options: PPO, scene: Scene) -> tuple[TokenBatch | None, Mapping[str, str]]:
    """Return the texts [N, L] that the policy goes on predicting, if any, and the hashes of all data.

    Raises:
      ValueError: for rows that `sft` would refuse.
    """
    if options.pretraining is None:
        return None, scene.hashes
    rows = dataclasses.replace(options.rows, data=options.pretraining, held_out=None)
    divided = divide_rows(rows, feedback.read_demonstrations, options.run.seed)
    texts = encode_sft(divided, scene.base.tokenizer, rows, None, scene.base.config.context).train
    return texts, {**scene.hashes, "pretraining_sha256": divided.hashes["data_sha256"]}


def run_ppo(options: PPO, argv: Sequence[str]) -> None:
    """Train by PPO."""
    scene = open_scene(options, "ppo", options.minibatches)
    critic = start_critic(options, scene)
    texts, hashes = read_pretraining(options, scene)
    batch = options.run.batch_size
    facts = {} if texts is None else {"pretraining": f"{options.pretraining}, {len(texts.tokens):,} rows"}
    hparams = align.RLHFHParams(
        scene.rate,
        clip=options.clip,
        value_coef=options.value_coef,
        temperature=options.answers.temperature,
        kl_coef=options.kl_coef,
        kl_target=1.0 if options.kl_target is None else options.kl_target,
        kl_horizon=np.inf if options.kl_target is None else options.kl_horizon,
        stop_penalty=options.answers.stop_penalty,
        pretraining_coef=options.pretraining_coef,
    )
    learner = align.make_rlhf_learner(
        scene.base.lm,
        scene.score,
        scene.config,
        epochs=options.ppo_epochs,
        minibatches=options.minibatches,
        total_steps=scene.steps,
        target_kl=options.target_kl,
        critic=critic.lm,
        pretraining=None if texts is None else sample_rows(jax.device_put(texts), batch_size=batch),
    )
    algorithm = Algorithm(
        "ppo",
        "PPO (Schulman et al. 2017, arXiv:1707.06347; Ziegler et al. 2019, arXiv:1909.08593)",
        learner,
        make_text_actor(scene.base.lm, scene.score, scene.config, critic=critic.lm),
        hparams,
        critic.params,
        "objective/scores",
        ("objective/scores", "objective/kl"),
        options.minibatches,
        batch // options.minibatches,
        # Its gradient and the optimiser's two moments beside what trains of the critic.
        (critic.frozen, [critic.trained] * 4, texts),
        facts,
    )
    scene = scene._replace(frozen=scene.frozen._replace(critic=critic.frozen), hashes=hashes)
    run_online(options, scene, algorithm, argv)


def check_read(name: str, named: Mapping[str, float | None]) -> None:
    """Raise ValueError for flags that were given to a method that does not read them."""
    given = [f"--{field.replace('_', '-')} {value}" for field, value in named.items() if value is not None]
    if name == "best-of-group" and given:
        raise ValueError(
            f"--method best-of-group imitates, with neither a clip nor a KL penalty; got {', '.join(given)}; "
            "leave it out, or take --method grpo"
        )


def run_groups(options: GRPO | RLOO, argv: Sequence[str]) -> None:
    """Train by a method that compares the answers to a prompt."""
    group = options.group
    scene = open_scene(options, "groups", group.minibatches)
    name = options.method if isinstance(options, GRPO) else "rloo"
    method, words = METHODS[name]
    named = {"clip": group.clip, "kl_coef": group.kl_coef}
    check_read(name, named)
    hparams = method.hparams._replace(
        learning_rate=scene.rate,
        temperature=options.answers.temperature,
        stop_penalty=options.answers.stop_penalty,
        **{field: value for field, value in named.items() if value is not None},
    )
    if group.clip is not None:
        hparams = hparams._replace(clip_high=None)
    learner = align.make_group_learner(
        scene.base.lm,
        scene.score,
        scene.config,
        group_size=group.group_size,
        method=method,
        epochs=group.updates,
        minibatches=group.minibatches,
        total_steps=scene.steps,
    )
    actor = make_group_actor(
        scene.base.lm, scene.score, scene.config, group_size=group.group_size, penalty=method.kl
    )
    algorithm = Algorithm(
        "rloo" if isinstance(options, RLOO) else "grpo",
        words,
        learner,
        actor,
        hparams,
        {"lm": scene.tuned.part},
        "reward",
        ("reward", "objective/kl"),
        group.minibatches,
        group.group_size * options.run.batch_size // group.minibatches,
    )
    run_online(options, scene, algorithm, argv)
