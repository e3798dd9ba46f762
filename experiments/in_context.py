"""In-context learning: examples in the prompt, and no weight moves.

Small transformers (2 layers of 64) are trained on prompts of one kind and then read fresh ones, beside a
reader who knows everything that can be known. Every seed has a world of its own.

*Functions*: pairs of x and w x, w drawn anew for each prompt (d = 3), beside ridge regression, the best that
can be predicted; its rate was chosen on another seed. *Concepts*: documents of examples from one of 6 hidden
Markov models, whose posterior is computed exactly, and of models that training never had; over those the
exact posterior of the known six grows surer of a wrong one. The rate is the first that was tried.

*Words*: sentences of two words, one of which decides; which, and what its four words are called, is drawn
anew, 12 of the 48 tasks never in training. Before any example the model bets against
these, which it knows not to occur. It took rotary positions, kernels five times as wide and a label for every
word: with two labels, or the language models' narrow start, 2,500 steps at three rates taught nothing; with
these two of four seeds still guessed after 3,000 steps. When a seed begins to read hangs on float rounding
too: before attention's derivative took another form, the same four were ten points better. The same examples
are learnt by fine-tuning instead, at the best of three rates on the first 8 of 32 tasks.

*Model* (`--parts model`): a published one, with examples in its context, raw and by
contextual calibration, and a LoRA that takes 20 steps on the same ones instead. Draws of balanced examples
are asked of the same items; the intervals are over the draws alone. Beside it stands who always gives the
commonest answer: on CoLA, where most sentences are acceptable, all that examples do is to turn always no into
always yes, which says nothing of grammar.
"""

from dataclasses import dataclass
from typing import Any, Literal

import in_context_concepts as concepts
import in_context_functions as functions
import in_context_model
import in_context_words as words
import jax
import jax.numpy as jnp
import numpy as np
from in_context_report import draw, report
from parts import join_claims

from jaxrl_align import runtime
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import MembersConfig, train_members, with_data
from jaxrl_align.types import Params, TokenBatch

Part = Literal["functions", "words", "concepts", "model"]
CLAIMS = {
    "functions": runtime.Claim(
        "A transformer fits a function that it never saw to the pairs in its context, without an update, as "
        "well as the pairs allow.",
        rows=("E1",),
        minutes=8,
    ),
    "words": runtime.Claim(
        "It does a task of text that training never had from examples in its context, better than after "
        "fine-tuning on as few; with many, gradients do it as well.",
        rows=("E1", "E3"),
        minutes=15,
    ),
    "concepts": runtime.Claim(
        "The context locates a concept that the model already has, as the exact posterior does, and teaches "
        "no new one.",
        rows=("E1", "E2"),
        minutes=5,
    ),
    "model": runtime.Claim(
        "A published model is right more often with examples in its context than without, and less often "
        "than after learning the same examples.",
        rows=("E1", "E3"),
        minutes=10,
    ),
}


@dataclass(frozen=True)
class Config(MembersConfig):
    """Small transformers, each trained on prompts of one kind."""

    out: str = "runs/in_context"
    seeds: int = 4
    parts: tuple[Part, ...] = ("functions", "words", "concepts")
    """`model` asks a published model, see `model` below."""
    width: int = 64
    """Numbers in a token's hidden state."""
    layers: int = 2
    """Of the transformer."""
    batch_size: int = 32
    """Documents of an update, in the part on concepts."""
    learning_rate: float = 3e-3
    """Of concepts. Every rate rises over a twentieth of the steps and falls linearly to 0."""
    tests: int = 512
    """Prompts that are read after training, for each seed."""
    dimension: int = 3
    """Of a function's x."""
    points: int = 9
    """Pairs of a prompt of functions."""
    noise: float = 0.5
    """Standard deviation of y about w x in the second world of functions; the first has none."""
    function_steps: int = 6_000
    """Updates, in the part on functions."""
    function_rate: float = 1e-3
    """Learning rate, in the part on functions."""
    function_batch: int = 64
    """Prompts of an update, in the part on functions."""
    examples: int = 9
    """Of a prompt of words; the context ends there."""
    word_steps: int = 8_000
    """After 3,000 two of the four seeds still guessed."""
    word_rate: float = 1e-3
    """Learning rate, in the part on words."""
    word_batch: int = 64
    """Prompts of an update, in the part on words."""
    tuned_examples: tuple[int, ...] = (2, 4, 8, 32, 128)
    """Numbers of examples that the model of words is fine-tuned on instead."""
    tuned_steps: int = 60
    """Updates of a model that is tuned on the examples instead."""
    tuned_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Tried; the best on the first quarter of the held-out tasks is reported on the others."""
    tuned_tasks: int = 32
    """Tasks on which models are tuned; a quarter chooses the rate."""
    concepts: int = 6
    """Hidden Markov models that pre-training mixes."""
    states: int = 6
    """Hidden states of a concept."""
    symbols: int = 12
    """Tokens that concepts emit."""
    example_length: int = 4
    """Symbols of an example of a concept."""
    concept_examples: int = 12
    """Examples of a prompt, in the part on concepts."""
    concept_steps: int = 3_000
    """Updates, in the part on concepts."""
    model: str = ""
    """Of the part `model`: a folder with a tokenizer; empty, SmolLM2-135M-Instruct (make model)."""
    model_tasks: tuple[str, ...] = ("sst2", "trec", "cola")
    """Tasks that the published model is asked."""
    model_shots: tuple[int, ...] = (0, 1, 2, 4, 8)
    """Examples in the published model's prompt."""
    model_draws: int = 4
    """Of the examples; the items are the same."""
    model_items: int = 100
    """Test questions of each task that the published model is asked."""
    model_rates: tuple[float, ...] = (3e-4, 1e-3)
    """Of a LoRA on the largest number of examples; all are reported."""
    model_steps: int = 20
    """Updates of the LoRA that learns the same examples."""
    model_length: int = 96
    """Tokens of an example, at most."""

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes of training."""
        self.require(seeds=2, points=2, examples=2, concept_examples=2, tuned_tasks=4, dimension=1)
        if min(self.tuned_examples) >= self.examples:
            raise ValueError(
                f"tuned_examples must begin below examples={self.examples}; got {self.tuned_examples}"
            )
        if len(self.model_shots) < 2 or self.model_shots[0] != 0:
            raise ValueError(f"model_shots must begin with 0 and go on; got {self.model_shots}")


def learn_functions(config: Config, folder: RunFolder) -> dict[str, Any]:
    """Train on functions without and with noise, and read fresh prompts.

    Returns:
      `squared` {world: {predictor: [M, K]}}, squared errors over d by the number of pairs before.
    """
    lm = functions.make_reader(config.points, config.width, config.layers)
    shape = {"points": config.points, "dimension": config.dimension}
    steps = config.function_steps
    learner = with_data(
        lambda noise: functions.make_function_learner(
            lm, noise, prompts=config.function_batch, steps=steps, **shape
        )
    )
    worlds = {"without noise": 0.0, "with noise": config.noise}
    noise = jnp.repeat(jnp.array(list(worlds.values())), config.seeds)
    keys = jnp.tile(config.keys(), len(worlds))
    own = folder.sub("functions")
    trained = train_members(
        learner,
        LMHParams(config.function_rate),
        config,
        steps,
        keys=keys,
        frozen=noise,
        folder=own,
        label="functions",
        checkpoint_every=max(1, steps // 4),
    )

    @jax.jit
    @jax.vmap
    def read(params: Params, key: Any, noise: Any) -> tuple[functions.Pairs, jax.Array]:
        pairs = functions.draw_pairs(key, noise, prompts=config.tests, **shape)
        return pairs, jax.vmap(lambda p: functions.predict(lm, params, p))(pairs)

    asked, said = jax.tree.map(np.asarray, read(trained.state.params, jnp.tile(config.keys(1), 2), noise))

    def squared(member: int, penalty: float | None) -> np.ndarray:
        pairs = functions.Pairs(*(value[member] for value in asked))
        guess = said[member] if penalty is None else functions.ridge(pairs, penalty)
        return np.square(guess - pairs.y).mean(0) / config.dimension

    found: dict[str, Any] = {}
    for i, (world, deviation) in enumerate(worlds.items()):
        members = range(i * config.seeds, (i + 1) * config.seeds)
        readers = {"transformer": None, "least squares": 1e-9, "ridge, Bayes": deviation**2 + 1e-9}
        found[world] = {
            name: np.array([squared(m, penalty) for m in members]) for name, penalty in readers.items()
        }
    return {"squared": found}


def learn_words(config: Config, folder: RunFolder) -> dict[str, Any]:
    """Train on some word tasks, and read prompts of these and of the held-out ones.

    Returns:
      `right` {tasks: {reader: [M, K]}}, shares of right labels by the number of examples before; and what
      `tune_on_examples` returns.
    """
    lm, steps = words.make_reader_of_words(config.examples, config.width, config.layers), config.word_steps
    how = {"prompts": config.word_batch, "examples": config.examples}
    learner = make_lm_learner(
        lm,
        lambda key: words.as_tokens(words.draw_prompts(key, words.KNOWN, **how)),
        total_steps=steps,
        warmup_steps=steps // 20,
    )
    start = jax.vmap(lambda key: functions.widen(lm.init(key)))(config.keys(5))
    options = {"folder": folder.sub("words"), "label": "words", "checkpoint_every": max(1, steps // 4)}
    hparams = LMHParams(config.word_rate)
    params = train_members(learner, hparams, config, steps, params=start, **options).state.params

    @jax.jit
    @jax.vmap
    def read(params: Params, key: Any) -> dict[str, dict[str, jax.Array]]:
        found = {}
        for name, tasks in {"known tasks": words.KNOWN, "held-out tasks": words.HELD_OUT}.items():
            asked = words.draw_prompts(key, tasks, prompts=config.tests, examples=config.examples)
            rows = words.as_tokens(asked).tokens
            said = jax.vmap(lambda row: words.label_log_probs(lm, params, row))(rows)
            right = lambda p, asked=asked: jnp.mean(p.argmax(-1) == asked.labels, 0)
            found[name] = {"transformer": right(said), "Bayes, any task": right(jax.vmap(words.bayes)(asked))}
        return found

    right = jax.tree.map(np.asarray, read(params, config.keys(1)))
    return {"right": right} | tune_on_examples(config, lm, params)


def tune_on_examples(config: Config, lm: LanguageModel, params: Params) -> dict[str, Any]:
    """Fine-tune the model of words on examples of a held-out task instead of showing them.

    Returns:
      `tuned` [M, len(tuned_examples)] shares of right labels without an example before, at the rate taken for
      each number; `tried` [len(tuned_examples), R] shares on the tasks that choose it.
    """
    most, rates = max(config.tuned_examples), config.tuned_rates

    def one(key: Any, params: Params, rate: Any, count: Any) -> jax.Array:
        key_task, key_words, key_test, key_init, key_rows = jax.random.split(key, 5)
        task = jax.random.choice(key_task, words.HELD_OUT)
        shown = words.as_tokens(
            jax.tree.map(lambda x: x[:, None], words.draw_examples(key_words, task, most))
        )

        def sample(key: Any) -> TokenBatch:
            index = jax.random.randint(key, (min(16, most),), 0, count)
            return jax.tree.map(lambda x: x[index], shown)

        learner = make_lm_learner(lm, sample, total_steps=config.tuned_steps)
        state = learner.init(key_init, LMHParams(rate), params)._replace(key=key_rows)
        state, _ = jax.lax.scan(lambda s, _: (learner.step(s)[0], None), state, None, config.tuned_steps)
        asked = jax.tree.map(lambda x: x[:, None], words.draw_examples(key_test, task, 64))
        rows = words.as_tokens(asked).tokens
        said = jax.vmap(lambda row: words.label_log_probs(lm, state.params, row))(rows)
        return jnp.mean(said.argmax(-1) == asked.labels)

    tasks = jax.vmap(one, (0, None, None, None))
    members = jax.vmap(
        lambda key, p, rate, n: tasks(jax.random.split(key, config.tuned_tasks), p, rate, n),
        (0, 0, None, None),
    )
    run = jax.jit(members)
    keys = config.keys(2)
    found = np.array([[run(keys, params, rate, n) for rate in rates] for n in config.tuned_examples])
    first = config.tuned_tasks // 4
    tried = found[..., :first].mean((2, 3))
    best = tried.argmax(1)
    rest = found[np.arange(len(best)), best][..., first:].mean(-1)
    return {"tuned": rest.T, "tried": tried}


PARTS = {
    "functions": learn_functions,
    "words": learn_words,
    "concepts": concepts.learn_concepts,
    "model": in_context_model.read_model,
}


def main(config: Config) -> None:
    """Run the parts, and report."""
    folder = config.open_folder()
    found = {name: PARTS[name](config, folder) for name in config.parts}
    draw(folder, config, found)
    report(config, folder, join_claims(CLAIMS[part] for part in config.parts), found)


if __name__ == "__main__":
    cli.main(Config, main)
