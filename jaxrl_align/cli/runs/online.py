"""What the commands that learn from their own answers share: prompts, rewards, held-out answers."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxrl_align import feedback
from jaxrl_align.actors import Frozen
from jaxrl_align.actors.scores import Score
from jaxrl_align.checks import check_divides, check_hparams
from jaxrl_align.cli.bases import Base, pad_of
from jaxrl_align.cli.datasets import (
    Encoded,
    count_rows,
    divide_rows,
    encode_questions,
    shuffled_batches,
    whole_batches,
)
from jaxrl_align.cli.judges import Judge, check_tokenizers, hint_form, load_judge
from jaxrl_align.cli.options import (
    check_run,
    count_steps,
    learning_rate,
)
from jaxrl_align.cli.runs.course import Course, make_samples
from jaxrl_align.cli.runs.driving import Journey, drive
from jaxrl_align.cli.runs.estimates import halving_flags
from jaxrl_align.cli.tuning import Tuned, check_tuning, load_tuned_base, start_tuning, write_language_model
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


class Scene(NamedTuple):
    """What every method that writes its own answers begins with."""

    base: Base
    tuned: Tuned
    judge: Judge
    score: Score
    encoded: Encoded
    hashes: Mapping[str, str]
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
    minibatches: int
    at_once: int
    """Sequences in memory at once."""
    others: Any = None
    """Further arrays in memory."""
    facts: Mapping[str, str] = {}
    """Further lines of the plan."""


def open_scene(options: Any, kind: str, minibatches: int) -> Scene:
    """Read model, reward and prompts."""
    check_run(options.run)
    check_tuning(options.tuning)
    if options.tuning.dropout:
        raise ValueError(
            f"--dropout is of training on given texts; got {options.tuning.dropout} for a model that learns "
            "from its own answers, whose probabilities must be those they were written by; leave it out"
        )
    check_divides(minibatches, options.run.batch_size, "--minibatches", "--batch-size")
    answers = options.answers
    divided = divide_rows(options.rows, feedback.read_prompts, options.run.seed)
    judge = load_judge(answers.reward)
    base = load_tuned_base(options.base, options.tuning)
    check_tokenizers(judge, base.tokenizer)
    pad = pad_of(base)
    room = base.config.context - answers.response_length
    encoded = encode_questions(divided, base.tokenizer, options.rows, answers.prompt_length, room, pad)
    config = TextConfig(
        encoded.lengths[0],
        answers.response_length,
        base.stop_tokens,
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
        judge.as_score(base.tokenizer, all_prompts(encoded), [*divided.train, *divided.held_out]),
        encoded,
        divided.hashes,
        config,
        Frozen(tuned.frozen, judge.model),
        steps,
        learning_rate(kind, options.run, options.tuning),
    )


def all_prompts(encoded: Encoded) -> PaddedTokens:
    """Return the prompts that train and those that are held out, one behind the other."""
    if encoded.held_out is None:
        return encoded.train
    return jax.tree.map(lambda a, b: np.concatenate([a, b]), encoded.train, encoded.held_out)


def run_online(options: Any, scene: Scene, algorithm: Algorithm, argv: Sequence[str]) -> None:
    """Drive a method that writes its own answers."""
    check_hparams(algorithm.hparams)
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
        shared=options,
        base=base,
        tuned=scene.tuned,
        encoded=encoded,
        counts=count_rows(encoded.train, encoded.held_out),
        hashes=scene.hashes,
        steps=scene.steps,
        rate=scene.rate,
        method=algorithm.words,
        course=course,
        write=lambda folder, params: write_language_model(
            folder, base, scene.tuned, params["lm"], options.tuning, options.base
        ),
        at_once=algorithm.at_once,
        length=scene.config.prompt_length + scene.config.response_length,
        halve=halving_flags(options.run.batch_size, algorithm.minibatches, "--minibatches"),
        others=(scene.judge.model, algorithm.others),
        facts={
            "reward": f"{answers.reward}, {where}; answers of at most {answers.response_length} tokens"
            + hint_form(answers.reward, options.rows.chat),
            **algorithm.facts,
        },
    )
    drive(journey, argv)


def measure_answers(
    scene: Scene, algorithm: Algorithm, batch_size: int
) -> Callable[[Params], dict[str, float]] | None:
    """Return `params -> metrics` of answers to held-out prompts, under the same random key every time."""
    if scene.encoded.held_out is None:
        return None
    batches = whole_batches(scene.encoded.held_out, batch_size)
    sizes = [len(batch.tokens) for batch in batches]
    keys = jax.random.split(jax.random.key(1), len(batches))
    env_state = algorithm.actor.init_env(keys[0], algorithm.hparams)

    @jax.jit
    def read(params: Params, frozen: Frozen, batch: Any, key: Any) -> Any:
        rollout = functools.partial(algorithm.actor.rollout, params, frozen, env_state)
        return rollout(key, algorithm.hparams, batch)[2]

    def measure(params: Params) -> dict[str, float]:
        found = [read(params, scene.frozen, *given) for given in zip(batches, keys, strict=True)]
        return {name: float(np.average([row[name] for row in found], weights=sizes)) for name in found[0]}

    return measure
