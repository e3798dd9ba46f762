"""Sentences on everyday topics, and who judges them: what all methods of `align.py` share."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.actors.answer_groups import judge_answers
from jaxrl_align.actors.queries import join
from jaxrl_align.align import RewardModel
from jaxrl_align.data.tokens.padding import left_pad, right_pad
from jaxrl_align.nets import init_lora, overlay
from jaxrl_align.nets.transformer import make_transformer
from jaxrl_align.runtime.huggingface import find_model, load_model
from jaxrl_align.text.generation import TextConfig, generate
from jaxrl_align.text.shared_prompt import completion_log_probs
from jaxrl_align.types import PaddedTokens, Params

# fmt: off
TOPICS = [
    "rain", "the dentist", "Monday mornings", "chess", "a broken chair", "the sea", "traffic jams",
    "the neighbour's dog", "exams", "winter", "old books", "airports", "the moon", "coffee",
    "a long meeting", "gardens", "taxes", "football", "hospitals", "the night bus", "bread", "spiders",
    "a new job", "mountains", "the news", "music lessons", "a flat tyre", "weddings", "the desert",
    "homework",
]
HELD_OUT = [
    "a train journey", "the office", "snow", "a lost key", "cats", "the supermarket", "a birthday",
    "mosquitoes", "the theatre", "a power cut", "bicycles", "the river", "a job interview", "soup",
    "a noisy street", "grandparents",
]
# fmt: on
ASKED = "{}\nThis makes me feel"
"""What the model that all start from goes on with: " happy" or " sad". Of five wordings, the one that agreed
best with VADER on other sentences of the start."""
READ_LENGTH = 56
"""Tokens of `ASKED` with a sentence in it."""
ROWS = 40
"""Answers that are written side by side."""


class Written(NamedTuple):
    """G answers to each of N prompts, and what is said of them."""

    tokens: np.ndarray
    """[N, G, T]."""
    real: np.ndarray
    """[N, G, T]."""
    features: np.ndarray
    """[N, G, width] what the reward model reads."""
    kl: np.ndarray
    """[N, G] nats, log pi - log pi_start summed over the answer."""
    vader: np.ndarray
    """[N, G] in [-1, 1]."""
    happy: np.ndarray
    """[N, G] in [0, 1], the probability that it makes the start happy rather than sad."""
    texts: list[list[str]]


class Task:
    """A published model that writes sentences, VADER and the model itself, who judge them.

    The reward model reads the mean of the hidden states of an answer's tokens after the first half of the
    layers. On the topics held out a head on it orders sentences as VADER does more often than one on the
    last token's state after all layers, which is at chance with a few hundred comparisons.
    """

    def __init__(self, folder: str, rank: int, prompt_length: int, response_length: int, seed: int) -> None:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise ImportError(
                "VADER's lexicon is missing; python -m pip install 'jaxrl-align[judge]'"
            ) from error
        model = load_model(folder or find_model())
        self.lm, self.tokenizer = make_transformer(model.config), model.tokenizer
        kind = {"rank": rank, "alpha": 2 * rank, "targets": ["*query", "*value"]}
        self.lora, constants = init_lora(jax.random.key(seed), model.params, **kind)
        self.base = overlay(model.params, constants)
        half = max(1, model.config.layers // 2)
        self._reader = make_transformer(dataclasses.replace(model.config, layers=half))
        layers = jax.tree.map(lambda x: x[:half], model.params["layers"])
        self._read_params = model.params | {"layers": layers}
        self._vader = SentimentIntensityAnalyzer()
        self.text = TextConfig(
            prompt_length,
            response_length,
            stop_token=self.tokenizer.stop_token,
            pad_token=self.tokenizer.pad_token,
            missing_stop="keep",
        )
        self.prompts = self.ask(TOPICS)
        words = [self.tokenizer.encode(word, special=False) for word in (" happy", " sad")]
        self._words = right_pad(words, max(map(len, words)), self.text.pad_token)
        self._write = jax.jit(jax.vmap(self._answer_one, (None, None, None, 0, 0)))
        self._read = jax.jit(jax.vmap(self._feel_happy_one, (None, 0)))

    def ask(self, topics: Sequence[str], opening: bool = True) -> PaddedTokens:
        """Return prompts [N, P]: a request for a sentence, and the first words of the answer."""
        rows = []
        for topic in topics:
            turns = [
                {"role": "system", "content": "You are a writer."},
                {"role": "user", "content": f"Write one sentence about {topic}."},
            ]
            row = self.tokenizer.encode_chat(turns, add_generation_prompt=True)
            rows.append(row + self.tokenizer.encode(_capital(topic), special=False) * opening)
        return jax.tree.map(jnp.asarray, left_pad(rows, self.text.prompt_length, self.text.pad_token))

    def write(self, part: Params, topics: Sequence[str], key: jax.Array, answers: int) -> Written:
        """Write `answers` sentences on every topic with a part of the model, and let the judges read them."""
        prompts = self.ask(topics)
        keys = jax.random.split(key, (len(topics), answers))
        count = min(len(topics), max(1, ROWS // answers))
        blocks = np.resize(np.arange(len(topics)), (-(-len(topics) // count), count))
        found = []
        for block in blocks:
            rows = jax.tree.map(lambda x, i=block: x[i], prompts)
            found.append(self._write(self.base, self._read_params, part, rows, keys[block]))
        columns = (np.concatenate(x)[: len(topics)] for x in zip(*found, strict=True))
        tokens, real, features, kl = columns
        decode = lambda tokens, real: self.tokenizer.decode(tokens[real > 0].tolist())
        texts = [
            [_capital(topic) + decode(*answer) for answer in zip(*group, strict=True)]
            for topic, *group in zip(topics, tokens, real, strict=True)
        ]
        vader = np.array([[self._vader.polarity_scores(t)["compound"] for t in group] for group in texts])
        happy = self.feel_happy([t for group in texts for t in group]).reshape(vader.shape)
        return Written(tokens, real, features, kl, vader, happy, texts)

    def feel_happy(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability [N] that each sentence makes the model happy rather than sad."""
        rows = [self.tokenizer.encode(ASKED.format(text))[-READ_LENGTH:] for text in texts]
        padded = left_pad(rows, READ_LENGTH, self.text.pad_token)
        blocks = np.resize(np.arange(len(rows)), (-(-len(rows) // ROWS), ROWS))
        read = lambda block: self._read(self.base, jax.tree.map(lambda x: jnp.asarray(x[block]), padded))
        return np.concatenate([read(block) for block in blocks])[: len(rows)]

    def features(self, prompts: PaddedTokens, answers: PaddedTokens) -> np.ndarray:
        """Return what the reward model reads of answers [N, T] to prompts [N, P], [N, width]."""

        @jax.jit
        def read(params: Params, rows: tuple[PaddedTokens, PaddedTokens]) -> jax.Array:
            one = lambda row: self._features_one(params, join(row[0], *row[1]))
            return jax.lax.map(one, rows, batch_size=ROWS)

        return np.asarray(read(self._read_params, (prompts, answers)))

    def reward_model(self, head: Params) -> RewardModel:
        """Return the frozen reward model, which `score` reads."""
        return RewardModel({"lm": self._read_params, "head": head})

    def score(self, model: RewardModel, tokens: jax.Array, real: jax.Array) -> jax.Array:
        """Return the score [] of ONE prompt with its answer [P + T]."""
        return score_features(
            model.params["head"], self._features_one(model.params["lm"], PaddedTokens(tokens, real))
        )

    def _features_one(self, params: Params, text: PaddedTokens) -> jax.Array:
        hidden, _ = self._reader.encode(params, text.tokens, text.real)
        own = text.real[self.text.prompt_length :]
        return own @ hidden[self.text.prompt_length :] / jnp.maximum(jnp.sum(own), 1.0)

    def _answer_one(
        self, base: Params, read_params: Params, part: Params, prompt: PaddedTokens, keys: jax.Array
    ) -> tuple[jax.Array, ...]:
        policy = overlay(base, part)
        written = jax.vmap(lambda key: generate(self.lm, policy, prompt, key, self.text))(keys)
        answers = PaddedTokens(written.tokens, written.mask)
        start = judge_answers(self.lm, base, prompt, answers, self.text)
        kl = jnp.sum((written.log_prob - start.log_prob) * written.mask, 1)
        read = lambda answer: self._features_one(read_params, join(prompt, *answer))
        return written.tokens, written.mask, jax.vmap(read)(answers), kl

    def _feel_happy_one(self, base: Params, text: PaddedTokens) -> jax.Array:
        happy, sad = jnp.sum(completion_log_probs(self.lm, base, text, self._words), 1)
        return jax.nn.sigmoid(happy - sad)


def score_features(head: Params, features: Any) -> Any:
    """Return the reward head's scores [...] of features [..., width]."""
    return features @ head["kernel"] + head["bias"]


def _capital(topic: str) -> str:
    return topic[0].upper() + topic[1:]


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("align")
