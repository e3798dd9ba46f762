"""The text, models, prompts and answers that all stages of `rlhf.py` share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rlhf_report import Samples

from jaxrl_align.actors.queries import join
from jaxrl_align.actors.text import Frozen, answer
from jaxrl_align.align import reward_model as rm
from jaxrl_align.align.rlhf import RLHFHParams, make_rlhf_learner
from jaxrl_align.data.corpora import paragraphs, python_topics, read_text, sentences
from jaxrl_align.data.prompts import cut_sentences
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.data.tokens.vocabularies import train_bpe
from jaxrl_align.feedback.annotators import PlainProse
from jaxrl_align.nets.transformer import LanguageModel, TransformerConfig, make_transformer
from jaxrl_align.pretrain.lm import sample_rows, sample_windows
from jaxrl_align.text.generation import TextConfig
from jaxrl_align.types import Learner, PaddedTokens, TokenBatch

SAMPLES = 256
"""Answers per member and evaluation; one program writes them all."""


class Setup:
    """The text, tokenizer, model, annotators and prompts of all stages."""

    def __init__(self, config: Any) -> None:
        blocks = paragraphs(python_topics() if config.corpus is None else read_text(config.corpus))
        rng = np.random.default_rng(config.seed)
        self.config = config
        self.tokenizer: Tokenizer = train_bpe(blocks, config.vocab_size)
        self.corpus = jnp.asarray(self.tokenizer.encode("\n".join(blocks)), jnp.int32)
        self.gold = PlainProse(blocks)
        special = {"stop_token": self.tokenizer.stop_token, "pad_token": self.tokenizer.pad_token}
        self.text = TextConfig(config.prompt_length, config.response_length, **special)
        shape = (config.width, config.layers, config.heads, config.context)
        self.lm: LanguageModel = make_transformer(TransformerConfig(config.vocab_size, *shape))
        lengths = {"prompt_length": config.prompt_length, "response_length": config.response_length}
        shuffled = rng.permutation(sentences(blocks)).tolist()
        shown = cut_sentences(shuffled, self.tokenizer, rng, **lengths)
        held_out = max(1, len(shown.prompt.tokens) // 5)
        self.prompts, self.responses = jax.tree.map(lambda x: jnp.asarray(x[held_out:]), shown)
        self.test_prompts, self.test_responses = jax.tree.map(lambda x: x[:held_out], shown)
        # Built here, before any training, so that what cannot work is refused at once.
        self.windows = sample_windows(self.corpus, batch_size=16, length=config.context - 1)
        self.score = functools.partial(rm.score, self.lm)
        self.rlhf = self.make_rlhf(self.text)
        self._answer = jax.jit(jax.vmap(self._answer_member))
        read = lambda model, prompt, text: self.score(model, *join(prompt, *text))
        self._score = jax.jit(jax.vmap(jax.vmap(read, (None, 0, 0))))

    def make_rlhf(self, text: TextConfig) -> Learner:
        """Build RLHF's learner; `text` says what an answer without a stop token is paid."""
        config = self.config
        return make_rlhf_learner(
            self.lm,
            self.score,
            text,
            sample_rows(self.prompts, batch_size=config.prompts_per_step),
            epochs=config.epochs,
            minibatches=config.minibatches,
            total_steps=config.rlhf_steps,
        )

    def keys(self, purpose: int) -> jax.Array:
        """Return one key per member."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), purpose)
        return jax.random.split(key, self.config.seeds)

    def two_keys(self, purpose: int) -> tuple[jax.Array, jax.Array]:
        """Return two keys per member: the training's, and one for what is drawn before it."""
        keys = jax.vmap(jax.random.split)(self.keys(purpose))
        return keys[:, 0], keys[:, 1]

    def draw_prompts(self, count: int, source: PaddedTokens, purpose: int) -> PaddedTokens:
        """Draw prompts [M, count, P] from a table."""
        rng = np.random.default_rng([self.config.seed, purpose])
        drawn = rng.integers(0, len(source.tokens), (self.config.seeds, count))
        return jax.tree.map(lambda x: np.asarray(x)[drawn], source)

    def _answer_member(
        self, policy: Any, reference: Any, prompts: PaddedTokens, keys: jax.Array
    ) -> tuple[PaddedTokens, jax.Array]:
        frozen, no_score = Frozen(reference, None), lambda model, tokens, mask: 0.0

        def one(prompt: PaddedTokens, key: jax.Array) -> tuple[PaddedTokens, jax.Array]:
            trajectory, parts = answer(
                self.lm, no_score, self.text, policy, frozen, prompt, key, 0.0, RLHFHParams()
            )
            return PaddedTokens(trajectory.action, trajectory.mask), parts["kl"]

        return jax.vmap(one)(prompts, jax.random.split(keys, len(prompts.tokens)))

    def write(self, policy: Any, reference: Any, prompts: PaddedTokens, keys: jax.Array) -> Samples:
        """Let every member's policy answer its prompts [M, N, P], and read each answer's hidden reward."""
        count = prompts.tokens.shape[1]
        blocks = -(-count // SAMPLES)
        # [blocks, members, SAMPLES, P]; what fills the last block up is dropped again.
        index = (np.arange(blocks * SAMPLES) % count).reshape(blocks, SAMPLES)
        block_keys = jax.vmap(lambda k: jax.random.split(k, blocks), out_axes=1)(keys)
        parts = [
            self._answer(policy, reference, jax.tree.map(lambda x, i=i: x[:, i], prompts), k)
            for i, k in zip(index, block_keys, strict=True)
        ]
        completions, kl = jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:, :count], *parts)
        stopped = ((completions.tokens == self.text.stop_token) & (completions.real > 0)).any(-1)
        texts = [[self.tokenizer.decode(row) for row in member] for member in completions.tokens]
        gold = [
            [self.gold(text, bool(end)) for text, end in zip(*member, strict=True)]
            for member in zip(texts, stopped, strict=True)
        ]
        return Samples(prompts, completions, kl, np.array(gold), texts)

    def score_answers(self, models: rm.RewardModel, samples: Samples) -> np.ndarray:
        """Return the score [M, N] that each member's reward model gives its answers."""
        return np.asarray(self._score(models, samples.prompts, samples.completions))


def as_demonstrations(prompts: PaddedTokens, responses: PaddedTokens) -> TokenBatch:
    """Return prompts [N, P] and responses [N, T] as rows [N, P + T] whose responses alone are predicted."""
    tokens, real = (jnp.concatenate(pair, 1) for pair in zip(prompts, responses, strict=True))
    return TokenBatch(tokens, real, real.at[:, : prompts.tokens.shape[1]].set(0.0))


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("rlhf")
