"""Commands that learn from their own answers: PPO with a critic, and the methods that compare answers."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from tyro.conf import OmitArgPrefixes

from jaxrl_align import align, feedback
from jaxrl_align.actors import Frozen, make_group_actor, make_text_actor
from jaxrl_align.actors.scores import Score
from jaxrl_align.checks import check_divides
from jaxrl_align.cli.bases import Base, pad_of
from jaxrl_align.cli.datasets import (
    Encoded,
    count_rows,
    divide_rows,
    encode_questions,
    shuffled_batches,
    whole_batches,
)
from jaxrl_align.cli.driving import Journey, drive
from jaxrl_align.cli.judges import Judge, check_tokenizers, load_judge
from jaxrl_align.cli.options import (
    DataOptions,
    ModelOptions,
    RunOptions,
    TuningOptions,
    check_run,
    count_steps,
    learning_rate,
)
from jaxrl_align.cli.training import Course, make_samples
from jaxrl_align.cli.tuning import Tuned, check_tuning, load_tuned_base, start_tuning, write_language_model
from jaxrl_align.feedback import Question
from jaxrl_align.nets.adapters import overlay
from jaxrl_align.text import TextConfig
from jaxrl_align.types import Actor, Learner, PaddedTokens, Params


@dataclass(frozen=True)
class AnswerOptions:
    """How answers are written and what they earn."""

    reward: str
    """A reward model's folder (jaxrl-align reward), or module:function of the working directory,
    f(prompts, completions, **columns) -> one number for each; columns are the rows' further fields."""
    prompt_length: int | None = None
    """Tokens that prompts are padded to; None, what they need. Of a longer one the end is read."""
    response_length: int = 48
    """The most tokens of an answer."""
    temperature: float = 1.0
    """That answers are sampled at, and learnt at."""
    missing_stop: Literal["keep", "replace", "subtract"] = "keep"
    """The score of an answer that is cut before its end: as it is, replaced by -stop_penalty, or less it."""
    stop_penalty: float = 1.0


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


@dataclass(frozen=True)
class GRPO:
    """Group relative policy optimisation (Shao et al. 2024) and its kin: answers judged by each other, no critic.

    Rows: as ppo's.
    """

    base: OmitArgPrefixes[ModelOptions]
    rows: OmitArgPrefixes[DataOptions]
    answers: OmitArgPrefixes[AnswerOptions]
    tuning: OmitArgPrefixes[TuningOptions] = TuningOptions()
    run: OmitArgPrefixes[RunOptions] = RunOptions(steps=50, batch_size=4)
    method: Literal["grpo", "dr-grpo", "gspo", "reinforce++"] = "grpo"
    """Dr. GRPO leaves out the divisions by length and deviation, GSPO clips whole answers, REINFORCE++ whitens
    over the batch."""
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
class RLOO:
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024): answers judged by the others', no critic.

    Rows: as ppo's.
    """

    base: OmitArgPrefixes[ModelOptions]
    rows: OmitArgPrefixes[DataOptions]
    answers: OmitArgPrefixes[AnswerOptions]
    tuning: OmitArgPrefixes[TuningOptions] = TuningOptions()
    run: OmitArgPrefixes[RunOptions] = RunOptions(steps=50, batch_size=4)
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


METHODS: dict[str, tuple[align.GroupMethod, str]] = {
    "grpo": (align.GRPO, "GRPO (Shao et al. 2024, arXiv:2402.03300)"),
    "dr-grpo": (align.DR_GRPO, "Dr. GRPO (Liu et al. 2025, arXiv:2503.20783)"),
    "gspo": (align.GSPO, "GSPO (Zheng et al. 2025, arXiv:2507.18071)"),
    "reinforce++": (align.REINFORCE_PLUS_PLUS, "REINFORCE++ (Hu et al. 2025, arXiv:2501.03262)"),
    "rloo": (align.RLOO, "RLOO (Ahmadian et al. 2024, arXiv:2402.14740)"),
}


class Scene(NamedTuple):
    """What every method that writes its own answers begins with."""

    base: Base
    tuned: Tuned
    judge: Judge
    score: Score
    encoded: Encoded
    sha256: str
    config: TextConfig
    frozen: Frozen
    steps: int
    rate: float


class Algorithm(NamedTuple):
    """What one of them adds."""

    command: str
    words: str
    learner: Learner
    actor: Actor
    """For held-out prompts."""
    hparams: Any
    part: Params
    judged_by: str
    show: tuple[str, ...]
    at_once: int
    """Sequences in memory at once."""


def open_scene(options: Any) -> Scene:
    """Read model, reward and prompts."""
    check_run(options.run)
    check_tuning(options.tuning)
    check_divides(options.minibatches, options.run.batch_size, "--minibatches", "--batch-size")
    answers = options.answers
    divided = divide_rows(options.rows, feedback.read_prompts, options.run.seed)
    judge = load_judge(answers.reward)
    base = load_tuned_base(options.base, options.tuning)
    check_tokenizers(judge, base.tokenizer)
    pad, stop = pad_of(base), base.tokenizer.stop_token
    assert stop is not None  # load_base has seen to it
    room = base.config.context - answers.response_length
    encoded, rows = encode_questions(divided, base.tokenizer, options.rows, answers.prompt_length, room, pad)
    config = TextConfig(
        encoded.lengths[0],
        answers.response_length,
        stop,
        pad,
        answers.missing_stop,
        getattr(options, "kl_penalty", "token"),
    )
    tuned = start_tuning(options.tuning, base, jax.random.key(options.run.seed))
    steps = count_steps(options.run, count_rows(encoded.train, None)[0])
    return Scene(
        base,
        tuned,
        judge,
        judge.as_score(base.tokenizer, all_prompts(encoded), columns_of(rows)),
        encoded,
        divided.sha256,
        config,
        Frozen(tuned.frozen, judge.model),
        steps,
        learning_rate("online", options.run, options.tuning),
    )


def all_prompts(encoded: Encoded) -> PaddedTokens:
    """Return the prompts that train and those that are held out, one behind the other."""
    if encoded.held_out is None:
        return encoded.train
    return jax.tree.map(lambda a, b: np.concatenate([a, b]), encoded.train, encoded.held_out)


def columns_of(rows: Sequence[Question]) -> dict[str, list[Any]]:
    """Return the rows' further fields by name; None where a row has none."""
    names = dict.fromkeys(name for row in rows for name in row.columns)
    return {name: [row.columns.get(name) for row in rows] for name in names}


def run_ppo(options: PPO, argv: Sequence[str]) -> None:
    """Train by PPO."""
    scene = open_scene(options)
    fixed = options.kl_target is None
    hparams = align.RLHFHParams(
        scene.rate,
        clip=options.clip,
        value_coef=options.value_coef,
        temperature=options.answers.temperature,
        kl_coef=options.kl_coef,
        kl_target=1.0 if fixed else options.kl_target,
        kl_horizon=np.inf if fixed else options.kl_horizon,
        stop_penalty=options.answers.stop_penalty,
    )
    learner = align.make_rlhf_learner(
        scene.base.lm,
        scene.score,
        scene.config,
        epochs=options.ppo_epochs,
        minibatches=options.minibatches,
        total_steps=scene.steps,
        target_kl=options.target_kl,
    )
    algorithm = Algorithm(
        "ppo",
        "PPO (Schulman et al. 2017, arXiv:1707.06347; Ziegler et al. 2019, arXiv:1909.08593)",
        learner,
        make_text_actor(scene.base.lm, scene.score, scene.config),
        hparams,
        align.init_policy(scene.base.lm, scene.tuned.part),
        "objective/scores",
        ("objective/scores", "objective/kl"),
        options.run.batch_size // options.minibatches,
    )
    run_online(options, scene, algorithm, argv)


def run_groups(options: GRPO | RLOO, argv: Sequence[str]) -> None:
    """Train by a method that compares the answers to a prompt."""
    scene = open_scene(options)
    name = options.method if isinstance(options, GRPO) else "rloo"
    method, words = METHODS[name]
    named = {"clip": options.clip, "kl_coef": options.kl_coef}
    hparams = method.hparams._replace(
        learning_rate=scene.rate,
        temperature=options.answers.temperature,
        stop_penalty=options.answers.stop_penalty,
        **{field: value for field, value in named.items() if value is not None},
    )
    if options.clip is not None:
        hparams = hparams._replace(clip_high=None)
    learner = align.make_group_learner(
        scene.base.lm,
        scene.score,
        scene.config,
        group_size=options.group_size,
        method=method,
        epochs=options.updates,
        minibatches=options.minibatches,
        total_steps=scene.steps,
    )
    actor = make_group_actor(
        scene.base.lm, scene.score, scene.config, group_size=options.group_size, penalty=method.kl
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
        options.group_size * options.run.batch_size // options.minibatches,
    )
    run_online(options, scene, algorithm, argv)


def run_online(options: Any, scene: Scene, algorithm: Algorithm, argv: Sequence[str]) -> None:
    """Drive a method that writes its own answers."""
    base, encoded, batch = scene.base, scene.encoded, options.run.batch_size

    def course() -> Course:
        return Course(
            algorithm.learner,
            algorithm.hparams,
            algorithm.part,
            scene.frozen,
            shuffled_batches(encoded.train, batch_size=batch, seed=options.run.seed),
            measure_answers(scene, algorithm, batch),
            algorithm.judged_by,
            True,
            algorithm.show,
            make_samples(
                base, encoded, options.run, lambda params: overlay(scene.tuned.frozen, params["lm"])
            ),
        )

    answers = options.answers
    where = "a Python function: it leaves the device" if scene.judge.function else "a reward model"
    journey = Journey(
        command=algorithm.command,
        options=options,
        base=base,
        tuned=scene.tuned,
        encoded=encoded,
        counts=count_rows(encoded.train, encoded.held_out),
        sha256=scene.sha256,
        steps=scene.steps,
        rate=scene.rate,
        method=algorithm.words,
        course=course,
        write=lambda folder, params: write_language_model(
            folder, base, scene.tuned, params["lm"], options.tuning, options.base
        ),
        at_once=algorithm.at_once,
        length=scene.config.prompt_length + scene.config.response_length,
        halve=(
            f"--minibatches {2 * options.minibatches}",
            f"--response-length {answers.response_length // 2}",
        ),
        others=scene.judge.model,
        facts={"reward": f"{answers.reward}, {where}; answers of at most {answers.response_length} tokens"},
    )
    drive(journey, argv)


def measure_answers(
    scene: Scene, algorithm: Algorithm, batch_size: int
) -> Callable[[Params], dict[str, float]] | None:
    """Return `params -> metrics` of answers to held-out prompts, under the same random key every time."""
    if scene.encoded.held_out is None:
        return None
    batches = whole_batches(scene.encoded.held_out, batch_size)
    keys = jax.random.split(jax.random.key(1), len(batches))
    env_state = algorithm.actor.init_env(keys[0], algorithm.hparams)

    @jax.jit
    def read(params: Params, frozen: Frozen, batch: Any, key: Any) -> Any:
        rollout = functools.partial(algorithm.actor.rollout, params, frozen, env_state)
        return rollout(key, algorithm.hparams, batch)[2]

    def measure(params: Params) -> dict[str, float]:
        found = [read(params, scene.frozen, *given) for given in zip(batches, keys, strict=True)]
        return {name: float(np.mean([row[name] for row in found])) for name in found[0]}

    return measure
