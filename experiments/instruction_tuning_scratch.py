"""The models from nothing of `instruction_tuning.py`: pre-trained on the prompts, then tuned on more sets."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from instruction_tuning_ask import ask_closed, make_reader_of_instructions
from instruction_tuning_rows import (
    Mixture,
    describe,
    draw_batch,
    draw_orders,
    draw_questions,
    encode_examples,
)
from instruction_tuning_sets import POOL

from jaxrl_align.data.tokenizers import train_bpe
from jaxrl_align.nets.transformer import LanguageModel, TransformerConfig, make_transformer
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner, sample_mixture, sample_rows
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import train_members, with_data
from jaxrl_align.types import Params, TokenBatch


def pretrain(config: Any, folder: RunFolder, lm: LanguageModel, tokens: Sequence[np.ndarray]) -> Params:
    """Return members [seeds, ...] that have read windows of the pool's prompts, every set alike."""
    shape = {"batch_size": config.batch_size, "length": config.length}
    learner = make_lm_learner(
        lm,
        sample_mixture([jnp.asarray(t) for t in tokens], np.ones(len(tokens)), **shape),
        total_steps=config.pretrain_steps,
        warmup_steps=config.pretrain_steps // 20,
    )
    options = {"folder": folder.sub("pretraining"), "label": "pretraining"}
    hparams = LMHParams(config.pretrain_rate)
    return train_members(learner, hparams, config, config.pretrain_steps, **options).state.params


def tune(
    config: Any, folder: RunFolder, lm: LanguageModel, start: Params, rows: Sequence[TokenBatch]
) -> tuple[Params, np.ndarray]:
    """Tune members [breadths x seeds], each on its rows; return them and their last losses [nats a token]."""
    learner = with_data(
        lambda data: make_lm_learner(
            lm, sample_rows(data, batch_size=config.batch_size), total_steps=config.tune_steps
        )
    )
    many = len(config.breadths)
    data = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *rows)
    trained = train_members(
        learner,
        LMHParams(config.tune_rate),
        config,
        config.tune_steps,
        keys=jnp.tile(config.keys(1), many),
        params=jax.tree.map(lambda x: jnp.tile(x, (many,) + (1,) * (x.ndim - 1)), start),
        frozen=data,
        folder=folder.sub("tuning"),
        label="tuning",
    )
    last = max(1, config.tune_steps // 10)
    return trained.state.params, np.asarray(trained.history["loss"])[-last:].mean(0)


def learn_from_scratch(config: Any, folder: RunFolder) -> dict[str, Any]:
    """Pre-train small models on the pool's prompts, tune each on more and more sets, and ask unseen ones.

    Returns:
      `questions`; `sets`, by seed the order of the sets; `loss` {breadth: [seeds]}; and `asked` {breadth:
      [seeds]} of what `ask_closed` returns, breadth 0 being pre-trained alone.
    """
    mixture = Mixture(config.pilot)
    texts = mixture.texts()
    some = [text[:1_000] for prompts in texts.values() for text in prompts[:300]]
    said = [row.completion[:200] for row in mixture.rows if row.set in POOL][::10]
    tokenizer = train_bpe(some + said, config.vocab_size)
    tokens = [
        np.concatenate([[*ids, tokenizer.stop_token] for ids in tokenizer.encode_batch(prompts)])
        for prompts in texts.values()
    ]
    shape = {"length": config.length, "answer": config.answer_length}
    examples = encode_examples(tokenizer, mixture.rows, **shape)
    questions = draw_questions(tokenizer, mixture.asked, config.questions, config.length, config.seed)
    orders = draw_orders(examples.sizes(), config.tune_rows, config.seeds, config.seed)
    context = config.length + config.answer_length
    lm = make_transformer(TransformerConfig(tokenizer.vocab_size, config.width, config.layers, 4, context))
    start = pretrain(config, folder, lm, tokens)
    rows = [
        draw_batch(examples, order[:n], config.tune_rows, config.length, config.seed + i)
        for n in config.breadths
        for i, order in enumerate(orders)
    ]
    params, loss = tune(config, folder, lm, start, rows)
    reader = make_reader_of_instructions(lm, tokenizer, [tokenizer.stop_token])
    take = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
    ask = lambda tree, i: ask_closed(reader, take(tree, i), questions)
    asked = {"0": [folder.once(f"0_sets_{i}", ask, start, i) for i in range(config.seeds)]}
    for k, n in enumerate(config.breadths):
        members = range(k * config.seeds, (k + 1) * config.seeds)
        asked[str(n)] = [folder.once(f"{n}_sets_{i % config.seeds}", ask, params, i) for i in members]
    losses = {str(n): x for n, x in zip(config.breadths, loss.reshape(len(config.breadths), -1), strict=True)}
    return {"questions": describe(questions), "sets": orders, "loss": losses, "asked": asked}
