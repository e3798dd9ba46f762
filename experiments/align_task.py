"""The model, prompts, judges and answers that all methods of `align.py` share."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.actors.judging import judge
from jaxrl_align.actors.queries import join
from jaxrl_align.align import RewardModel, choose_completions, score
from jaxrl_align.data.tokenizers import left_pad
from jaxrl_align.feedback import compare
from jaxrl_align.learner import make_gradient_learner, make_optimizer, train
from jaxrl_align.losses import bradley_terry
from jaxrl_align.nets import init_lora, overlay
from jaxrl_align.nets.transformer import LanguageModel, make_transformer
from jaxrl_align.runtime.huggingface import find_model, load_model
from jaxrl_align.text.generation import TextConfig, generate
from jaxrl_align.types import Comparisons, Numeric, PaddedTokens, Params

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
ZERO_SHOT = "Sentence: {}\nThe sentiment of this sentence, positive or negative, is"


def opening(topic: str) -> str:
    """Return the first words of a sentence on a topic."""
    return topic[0].upper() + topic[1:]


class Written(NamedTuple):
    """Answers to N prompts, and what the judges say of them."""

    tokens: np.ndarray
    """[N, T]."""
    real: np.ndarray
    kl: np.ndarray
    """[N] nats, log pi - log pi_start summed over the answer."""
    vader: np.ndarray
    """[N] in [-1, 1], what the annotators judge by."""
    zero_shot: np.ndarray
    """[N] in [0, 1], what no method saw."""
    texts: list[str]


class Task:
    """Sentences on everyday topics, which annotators like the better the more cheerful they are."""

    def __init__(self, config: Any) -> None:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise ImportError(
                "the annotators read VADER's lexicon; pip install jaxrl-align[judge]"
            ) from error
        model = load_model(config.model or find_model())
        self.config, self.tokenizer = config, model.tokenizer
        kind = {"rank": config.rank, "alpha": 2 * config.rank, "targets": ["*query", "*value"]}
        self.lora, constants = init_lora(jax.random.key(config.seed), model.params, **kind)
        self.base = overlay(model.params, constants)
        self.lm: LanguageModel = make_transformer(model.config)
        self._vader = SentimentIntensityAnalyzer()
        special = {"stop_token": self.tokenizer.stop_token, "pad_token": self.tokenizer.pad_token}
        self.text = TextConfig(config.prompt_length, config.response_length, missing_stop="keep", **special)
        self.prompts = self.ask(TOPICS)
        self.words = [self.tokenizer.encode(w, special=False)[0] for w in (" positive", " negative")]
        self._write = jax.jit(jax.vmap(self._write_one, (None, 0, 0)))
        self._read = jax.jit(jax.vmap(self._read_one))
        self._features = jax.jit(jax.vmap(self._features_one))

    def ask(self, topics: list[str]) -> PaddedTokens:
        """Return prompts [N, P]: a question, and the first words of the answer."""
        rows = []
        for topic in topics:
            turn = {"role": "user", "content": f"Write one sentence about {topic}."}
            rows.append(
                self.tokenizer.encode_chat([turn], add_generation_prompt=True)
                + self.tokenizer.encode(opening(topic), special=False)
            )
        return jax.tree.map(jnp.asarray, left_pad(rows, self.text.prompt_length, self.text.pad_token))

    def _write_one(self, part: Params, prompt: PaddedTokens, key: jax.Array) -> tuple[jax.Array, ...]:
        response = generate(self.lm, overlay(self.base, part), prompt, key, self.text)
        start = judge(self.lm, self.base, prompt, response.tokens, response.mask, self.text)
        kl = jnp.sum((response.log_prob - start.log_prob) * response.mask)
        return response.tokens, response.mask, kl

    def _read_one(self, text: PaddedTokens) -> jax.Array:
        hidden, _ = self.lm.encode(self.base, text.tokens, text.real)
        yes, no = self.lm.logits(self.base, hidden[-1])[jnp.array(self.words)]
        return jax.nn.sigmoid(yes - no)

    def write(self, part: Params, topics: list[str], key: jax.Array, times: int) -> Written:
        """Write `times` sentences on every topic, and let the judges read them."""
        rows = jax.tree.map(lambda x: jnp.repeat(x, times, 0), self.ask(topics))
        count, size = len(rows.tokens), 32
        keys = jax.random.split(key, count)
        index = np.arange(-(-count // size) * size) % count  # what fills the last block up is dropped again
        blocks = [
            self._write(part, jax.tree.map(lambda x, i=i: x[i], rows), keys[i])
            for i in index.reshape(-1, size)
        ]
        tokens, real, kl = (np.concatenate(x)[:count] for x in zip(*blocks, strict=True))
        texts = [
            opening(topics[i // times]) + self.tokenizer.decode(t[m > 0].tolist())
            for i, (t, m) in enumerate(zip(tokens, real, strict=True))
        ]
        vader = np.array([self._vader.polarity_scores(text)["compound"] for text in texts])
        asked = [self.tokenizer.encode(ZERO_SHOT.format(text)) for text in texts]
        read = left_pad([ids[-64:] for ids in asked], 64, self.text.pad_token)
        judged = [
            self._read(jax.tree.map(lambda x, i=i: jnp.asarray(x)[i], read)) for i in index.reshape(-1, size)
        ]
        return Written(tokens, real, kl, vader, np.concatenate(judged)[:count], texts)

    def compare(self, written: Written, rng: np.random.Generator) -> Comparisons:
        """Let a noisy annotator compare answers 2 i and 2 i + 1, of the same prompt each."""
        first = compare(
            written.vader[::2], written.vader[1::2], rng, temperature=self.config.annotator_temperature
        )
        side = lambda i: PaddedTokens(jnp.asarray(written.tokens[i::2]), jnp.asarray(written.real[i::2]))
        prompts = jax.tree.map(lambda x: jnp.repeat(x, self.config.pairs, 0), self.prompts)
        return choose_completions(prompts, side(0), side(1), jnp.asarray(first))

    def _features_one(self, prompt: PaddedTokens, completion: PaddedTokens) -> jax.Array:
        text = join(prompt, completion.tokens, completion.real)
        hidden, _ = self.lm.encode(self.base, text.tokens, text.real)
        last = jnp.max(jnp.where(text.real > 0, jnp.arange(text.real.shape[0]), 0))
        return hidden[last]

    def features(self, rows: Comparisons) -> jax.Array:
        """Return the base's last hidden states [N, 2, width] of the chosen and the rejected answers."""
        blocks = range(0, len(rows.prompt.tokens), 32)
        read = lambda side, i: self._features(*jax.tree.map(lambda x: x[i : i + 32], (rows.prompt, side)))
        sides = [jnp.concatenate([read(side, i) for i in blocks]) for side in (rows.chosen, rows.rejected)]
        return jnp.stack(sides, 1)

    def fit_head(self, features: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        """Fit a reward head to features [N, 2, width], of which a fifth is held out.

        Returns:
          The head, scaled so that scores have mean 0 and deviation 1, and the held-out margins.
        """
        held_out = len(features) // 5
        flat = features.reshape(-1, features.shape[-1])
        mean, std = jnp.mean(flat, 0), jnp.std(flat, 0) + 1e-6
        scaled = (features - mean) / std

        def loss(params: Params, frozen: Any, batch: jax.Array, key: Any, hparams: Any) -> Any:
            chosen, rejected = (batch @ params).T
            return jnp.mean(bradley_terry(chosen, rejected)) + hparams.decay * jnp.sum(params**2), {}

        learner = make_gradient_learner(
            lambda key: jnp.zeros(flat.shape[-1]),
            loss,
            lambda key: scaled[held_out:],
            optimizer=make_optimizer(max_grad_norm=None),
        )
        state, _ = jax.jit(train(learner, 500))(jax.random.key(0), HeadHParams(0.003, self.config.decay))
        raw = (flat - mean) / std @ state.params
        kernel = state.params / std / jnp.std(raw)
        head = {"kernel": kernel, "bias": -jnp.mean(flat @ kernel)}
        return head, (features[:held_out, 0] - features[:held_out, 1]) @ kernel

    def reward_model(self, head: Params) -> RewardModel:
        """Return the reward model that reads the base's features."""
        return RewardModel({"lm": self.base, "head": head})

    @functools.cached_property
    def scores(self) -> Any:
        """`(head, prompts, tokens, real) -> [N]`, the reward model's scores."""
        read = lambda head, prompt, tokens, real: score(
            self.lm, self.reward_model(head), *join(prompt, tokens, real)
        )
        return jax.jit(jax.vmap(read, (None, 0, 0, 0)))


class HeadHParams(NamedTuple):
    """Of the reward head."""

    learning_rate: Numeric
    decay: Numeric
    """Weight of the squared norm."""
