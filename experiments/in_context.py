"""In-context learning: examples in the prompt, and no weight moves.

Claims (lectures 000, 001, 003; E1 to E3): a model does a task from a few examples in its context, without
an update; the context locates a concept that the model already has; its limits are the context and complex
tasks, which need gradients. Small transformers (2 layers of 64) are trained on prompts of one kind and then
read fresh ones, beside a reader who knows everything that can be known. *Functions*: pairs of x and w x, w
drawn anew for each prompt (d = 3). *Concepts*: documents of examples from one of 6 hidden Markov models,
whose posterior is computed exactly, and documents of models that training never had. *Words*: tasks of text
with label words drawn anew.

Measured (`python experiments/in_context.py --parts functions concepts`: 4 seeds, each a world of its own, 512
prompts each, 95% t intervals; about 30 minutes of CPU time; the rate of functions was chosen on another seed,
that of concepts is the first one tried):

    examples before         0               1               2               4               8
    functions, squared error / d
      transformer           .940 +- .055    .691 +- .150    .446 +- .084    .176 +- .042    .072 +- .010
      least squares         .938 +- .055    .682 +- .136    .359 +- .056    0               0
      transformer, noise    1.030 +- .084   .852 +- .132    .595 +- .116    .358 +- .064    .240 +- .037
      ridge, noise (Bayes)  1.029 +- .082   .835 +- .132    .552 +- .102    .269 +- .034    .144 +- .022
    known concepts, nats a symbol
      transformer           1.907 +- .195   1.764 +- .266   1.683 +- .276   1.665 +- .281   1.615 +- .283
      less the exact one    +.005 +- .006   +.045 +- .015   +.041 +- .023   +.037 +- .023   +.018 +- .008
      concept's posterior   .167            .648 +- .161    .854 +- .140    .966 +- .057    .996 +- .008
    new concepts            2.202 +- .261   2.215 +- .219   2.221 +- .235   2.228 +- .184   2.208 +- .276

So the first claim holds in part, the second holds. Without an update the error falls with every example, with
the first as least squares' does, but it stays above 0 where three pairs tell all. On known concepts the
transformer is within .02 to .05 nats of the exact posterior at every number of examples, and gains .277 +-
.155 nats from the first example to the twelfth; of concepts that it never had eleven examples teach it
nothing (+.010 +- .040 nats): the context locates what is there, and no more. (The exact posterior over the
known six grows surer of a wrong one, and does worse than a reader who forgets each example.)

A published model (`--parts model --model-tasks sst2 trec --model-items 60 --model-rates 1e-3`:
SmolLM2-135M-Instruct, 4 draws of balanced examples, the same 60 items, right answers in per cent, t intervals
over the draws alone, cut at 0; 13 minutes):

    examples shown    0       1              2              4              8
    SST-2, raw        80.0    74.6 [70, 79]  70.4 [58, 83]  66.2 [52, 80]  75.8 [70, 82]
      calibrated      78.3    82.1 [78, 87]  77.5 [60, 95]  72.5 [63, 82]  76.7 [61, 93]
    TREC, raw         31.7    19.2 [0, 43]   18.3 [0, 40]   19.6 [0, 45]   8.3 [0, 18]
      calibrated      30.0    35.0 [31, 39]  32.9 [30, 36]  42.5 [26, 59]  43.8 [33, 55]

Raw, examples lower it on SST-2 and TREC. Contextual calibration mends that on TREC (+22.9 +- 12.3 and +35.4
+- 12.9 points at 4 and 8 examples, paired); on SST-2 no difference is outside its interval (+6.3 +- 22.4 and
+0.8 +- 20.1). A LoRA that takes 20 steps on the same 8 examples answers 85.0 [83, 87] on SST-2 without any
in the context: learning them beats showing them there (E3). On TREC it answers 39.6 [22, 57], level with what
calibration makes of showing them (one rate, which was not chosen).

CoLA (`--model-tasks cola`, otherwise the same; 5 minutes) shows what calibration does and does not do: of the
60 sentences 68.3% are acceptable. Raw, the model is right exactly as often as if it always said no;
calibrated, from one example on (+37.1 +- 9.3), as often as if it always said yes, which says nothing of
grammar. A LoRA on the same 8 is between the two, 42.1 [29, 55].

*Words* (`--parts words`: 4 seeds, 512 prompts each, right labels in per cent, t intervals cut at 100; 41
minutes on 2 CPU cores that four jobs shared): sentences of two words, one of which decides; which, and what
its four words are called, is drawn anew, 12 of the 48 tasks never in training:

    examples                   0              1              2              4              8
    known tasks                30.3 +- 3.1    45.9 +- 3.1    57.7 +- 4.9    83.4 +- 4.6    97.8 [95, 100]
    held-out tasks             14.9 +- 2.2    33.3 +- 3.5    46.5 +- 3.9    72.8 +- 7.8    93.1 [86, 100]
      Bayes, all 48 alike      24.7 +- 2.8    43.4 +- 4.0    57.3 +- 4.8    88.7 +- 1.4    99.3 +- 0.5
      fine-tuned on as many                                  37.4 +- 2.0    53.9 +- 7.3    75.9 +- 4.8

Eight examples of a task that training never had are worth more in the context than learnt (+17.3 +- 11.5,
paired), and cost no update; from 32 on, fine-tuning is at 99.1 [98, 100]. Before any example the model bets
against the held-out tasks, which it knows not to occur. It took rotary positions, kernels five times as wide
and a label for every word: with two labels, or the language models' narrow start, 2,500 steps at three rates
taught nothing; with these two of the four seeds still guessed after 3,000 steps, none after 8,000. Rates of
fine-tuning 1e-3, 3e-3, 1e-2, the best on the first 8 of 32 tasks for each number.
"""

import time
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

from jaxrl_align.nets.transformer import LanguageModel, TransformerConfig, make_transformer
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner, predict_row
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import MembersConfig, train_members, with_data
from jaxrl_align.types import Params, TokenBatch

Part = Literal["functions", "words", "concepts", "model"]


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


def make_reader_of_words(config: Config) -> LanguageModel:
    """Build the model that reads prompts of words."""
    context = 1 + config.examples * words.EXAMPLE
    shape = TransformerConfig(words.VOCAB, config.width, config.layers, 4, context, positions="rotary")
    return make_transformer(shape)


def learn_words(config: Config, folder: RunFolder) -> dict[str, Any]:
    """Train on some word tasks, and read prompts of these and of the held-out ones.

    Returns:
      `right` {tasks: {reader: [M, K]}}, shares of right labels by the number of examples before; and what
      `tune_on_examples` returns.
    """
    lm, steps = make_reader_of_words(config), config.word_steps
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


def learn_concepts(config: Config, folder: RunFolder) -> dict[str, Any]:
    """Train on documents of a mixture of concepts, and read documents of these and of new ones.

    Returns:
      `nats` {documents: {reader: [M, K]}} nats a symbol by the number of examples before; `posterior` [M, K]
      probability of the true concept, exactly.
    """
    shape = {"examples": config.concept_examples, "length": config.example_length}
    context = 1 + config.concept_examples * (config.example_length + 1)
    lm = make_transformer(TransformerConfig(config.symbols + 1, config.width, config.layers, 4, context))
    size = {"concepts": 2 * config.concepts, "states": config.states, "symbols": config.symbols}
    worlds = jax.vmap(lambda key: concepts.draw_concepts(key, **size))(config.keys(3))
    split = lambda world, part: world._replace(start=world.start[part], move=world.move[part])
    known, new = (
        split(worlds, np.s_[:, part]) for part in (np.s_[: config.concepts], np.s_[config.concepts :])
    )
    steps = config.concept_steps
    learner = with_data(
        lambda world: make_lm_learner(
            lm,
            lambda key: concepts.draw_documents(key, world, documents=config.batch_size, **shape)[0],
            total_steps=steps,
            warmup_steps=steps // 20,
        )
    )
    own = folder.sub("concepts")
    options = {"frozen": known, "folder": own, "label": "concepts", "checkpoint_every": max(1, steps // 4)}
    params = train_members(learner, LMHParams(config.learning_rate), config, steps, **options).state.params
    by_example = lambda nats: nats.reshape(-1, config.concept_examples, config.example_length + 1)[
        ..., :-1
    ].mean((0, 2))
    flat = jnp.full(config.concepts, -jnp.log(config.concepts))

    @jax.jit
    @jax.vmap
    def read(params: Params, key: Any, written: Any, known: Any) -> dict[str, jax.Array]:
        rows, which = concepts.draw_documents(key, written, documents=config.tests, **shape)
        said = jax.vmap(lambda row: predict_row(lm, params, row)[0])(rows)
        exact = jax.vmap(lambda t: concepts.read_exactly(known, t, flat))(rows.tokens)
        sure = jnp.log(jax.nn.one_hot(which, config.concepts))
        told = jax.vmap(lambda t, prior: concepts.read_exactly(written, t, prior))(rows.tokens, sure)
        alone = rows.tokens[:, 1:].reshape(-1, config.example_length + 1)
        alone = jnp.concatenate([jnp.full((len(alone), 1), concepts.DELIMITER), alone], 1)
        unread = jax.vmap(lambda t: concepts.read_exactly(known, t, flat).nats)(alone)
        begin = slice(None, None, config.example_length + 1)
        return {
            "transformer": by_example(said),
            "exact posterior": by_example(exact.nats),
            "told the concept": by_example(told.nats),
            "examples unread": by_example(unread.reshape(exact.nats.shape)),
            "posterior": jnp.take_along_axis(exact.posterior[:, begin], which[:, None, None], 2).mean((0, 2)),
        }

    found = {
        name: jax.tree.map(np.asarray, read(params, config.keys(4), written, known))
        for name, written in {"known concepts": known, "new concepts": new}.items()
    }
    posterior = found["known concepts"]["posterior"]
    return {
        "nats": {name: {k: x for k, x in row.items() if k != "posterior"} for name, row in found.items()},
        "posterior": posterior,
    }


PARTS = {
    "functions": learn_functions,
    "words": learn_words,
    "concepts": learn_concepts,
    "model": in_context_model.read_model,
}


def main(config: Config) -> None:
    """Run the parts, and report."""
    started = time.monotonic()
    folder = config.open_folder()
    found = {name: PARTS[name](config, folder) for name in config.parts}
    report(config, found)
    draw(folder, config, found)
    folder.write_json("results.json", found)
    print(f"figure and results.json are in {folder.path}; {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    cli.main(Config, main)
