"""The training of `assistants.py`: all members side by side, from text to an aligned policy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from assistants_data import Rows, Split, encode_pairs, encode_prompts, make_texts, prefer_humans
from assistants_rules import ANSWERS, Written, judge_all
from rlhf_setup import as_demonstrations

from jaxrl_align.actors.text import Frozen
from jaxrl_align.align import (
    GRPO,
    RewardHParams,
    RewardModel,
    init_reward_params,
    make_group_learner,
    make_reward_learner,
    normalise_scores,
    score,
    score_margins,
)
from jaxrl_align.nets.transformer import LanguageModel, TransformerConfig, make_transformer
from jaxrl_align.pretrain.lm import (
    LMHParams,
    make_lm_learner,
    next_token_objective,
    sample_mixture,
    sample_rows,
)
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import train_members, with_data
from jaxrl_align.text.generation import TextConfig, generate
from jaxrl_align.types import Learner, PaddedTokens, Params

STAGES = ("pre-trained", "SFT", "RLHF")


class Setup:
    """The texts, the model and the prompts of all stages; the last members choose the rates."""

    def __init__(self, config: Any, split: Split) -> None:
        self.config, self.split = config, split
        self.texts = make_texts(split, config.vocab_size, config.words)
        self.tokenizer = self.texts.tokenizer
        size = config.prompt_length, config.response_length
        shape = (config.width, config.layers, config.heads, sum(size))
        self.lm: LanguageModel = make_transformer(TransformerConfig(self.tokenizer.vocab_size, *shape))
        special = {"stop_token": self.tokenizer.stop_token, "pad_token": self.tokenizer.pad_token}
        self.text = TextConfig(*size, **special)  # type: ignore[arg-type]
        self.train, self.validation = (
            jax.tree.map(jnp.asarray, encode_pairs(self.tokenizer, pairs, *size)) for pairs in split[:2]
        )
        self._write = jax.jit(jax.vmap(self._write_member, (0, None, 0)))

    @property
    def members(self) -> int:
        """Of all stages but RLHF."""
        return self.config.seeds + self.config.tuning_seeds

    def keys(self, purpose: int, count: int | None = None) -> jax.Array:
        """Return one key per member."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), purpose)
        return jax.random.split(key, self.members if count is None else count)

    def _write_member(self, params: Params, prompts: PaddedTokens, key: jax.Array) -> PaddedTokens:
        def one(prompt: PaddedTokens, key: jax.Array) -> PaddedTokens:
            response = generate(self.lm, params, prompt, key, self.text)
            return PaddedTokens(response.tokens, response.mask)

        return jax.vmap(one)(prompts, jax.random.split(key, len(prompts.tokens)))

    def write(self, params: Params, prompts: PaddedTokens, keys: jax.Array) -> PaddedTokens:
        """Let every member write to the same prompts [N, P] at temperature 1; return texts [M, N, T]."""
        return self._write(params, prompts, keys)


def pretrain(setup: Setup, folder: RunFolder) -> Params:
    """Predict the next token of books and of lists of instructions; return parameters [M, ...]."""
    config, texts = setup.config, setup.texts
    windows = sample_mixture(
        [texts.books, texts.lists],
        [1.0 - config.lists, config.lists],
        batch_size=config.pretrain_batch,
        length=setup.lm.config.context - 1,
    )
    steps = config.pretrain_steps
    learner = make_lm_learner(setup.lm, windows, total_steps=steps, warmup_steps=steps // 10)
    how = {"folder": folder.sub("pretrain"), "label": "1/4 pre-train   ", "keys": setup.keys(0)}
    return train_members(learner, LMHParams(config.pretrain_rate), config, steps, **how).state.params


def fine_tune(setup: Setup, folder: RunFolder, params: Params, rate: Any, keys: jax.Array) -> Params:
    """Imitate the humans' answers from parameters [K, ...], at `rate` [] or [K]."""
    steps = setup.config.sft_steps
    rows = as_demonstrations(*setup.train)
    sample = sample_rows(rows, batch_size=setup.config.batch_size)
    learner = make_lm_learner(setup.lm, sample, total_steps=steps, warmup_steps=steps // 10)
    how = {"folder": folder, "label": "2/4 fine-tune   ", "keys": keys, "params": params}
    return train_members(learner, LMHParams(rate), setup.config, steps, **how).state.params


def repeat_tuning(setup: Setup, tree: Any, count: int) -> Any:
    """Return the members of a tree [M, ...] that choose rates, `count` times: [count x tuning_seeds, ...]."""
    return jax.tree.map(lambda x: jnp.concatenate([x[setup.config.seeds :]] * count), tree)


def choose_cloning(setup: Setup, folder: RunFolder, params: Params) -> dict[str, Any]:
    """Fine-tune at every rate; return the rates and the cross-entropies [R, seeds] of validation pairs."""
    rates, seeds = setup.config.sft_rates, setup.config.tuning_seeds
    start, keys = (repeat_tuning(setup, x, len(rates)) for x in (params, setup.keys(1)))
    tuned = fine_tune(setup, folder.sub("sft_tuning"), start, jnp.repeat(jnp.asarray(rates), seeds), keys)
    rows, objective = as_demonstrations(*setup.validation), next_token_objective(setup.lm)
    loss = jax.jit(jax.vmap(lambda p: objective(p, None, rows, jax.random.key(0), None)[0]))
    return {"rates": list(rates), "nats": np.asarray(loss(tuned)).reshape(-1, seeds).tolist()}


def learn_reward(
    setup: Setup, folder: RunFolder, base: Params, sft: Params
) -> tuple[RewardModel, dict[str, np.ndarray]]:
    """Fit a reward model to the preference of a prompt's human answer over what is worse.

    Worse is what the pre-trained and the SFT model write, and the human answer to another prompt.

    Returns:
      The models [M, ...], normalised on the SFT policy's answers; and what `rank_held_out` does.
    """
    config, lm = setup.config, setup.lm

    written = [setup.write(p, setup.train.prompt, setup.keys(2 + i)) for i, p in enumerate((base, sft))]
    worse = (None, 0, 0, None)
    data = jax.vmap(prefer_humans, worse)(setup.train, *written, anothers(setup.train))

    def learner(data: Any) -> Learner:
        sample = sample_rows(data, batch_size=config.batch_size)
        return make_reward_learner(lm, sample, total_steps=config.reward_steps)

    start = jax.vmap(lambda key, p: init_reward_params(key, lm, p))(setup.keys(4), sft)
    how = {"folder": folder.sub("reward"), "label": "3/4 reward model", "show": ("loss", "accuracy")}
    how |= {"keys": setup.keys(5), "params": start, "frozen": data}
    hparams = RewardHParams(config.reward_rate)
    trained = train_members(with_data(learner), hparams, config, config.reward_steps, **how)
    fit = lambda params, text: normalise_scores(lm, RewardModel(params), setup.train.prompt, text)
    model = jax.jit(jax.vmap(fit))(trained.state.params, written[1])
    return model, rank_held_out(setup, model, base, sft)


def anothers(rows: Rows) -> PaddedTokens:
    """Return the human answer to the row before."""
    return jax.tree.map(lambda x: jnp.roll(x, 1, 0), rows.answer)


def rank_held_out(setup: Setup, model: RewardModel, base: Params, sft: Params) -> dict[str, np.ndarray]:
    """Return the shares [M] of validation prompts whose human answer scores above what is worse."""
    rows = setup.validation
    write = lambda params, purpose: setup.write(params, rows.prompt, setup.keys(purpose))
    same = jax.tree.map(lambda x: jnp.stack([x] * setup.members), anothers(rows))
    worse = {STAGES[0]: write(base, 6), STAGES[1]: write(sft, 7), "another's human answer": same}
    margins = jax.jit(jax.vmap(functools.partial(score_margins, setup.lm)))
    data = {name: jax.vmap(prefer_humans, (None, 0))(rows, text) for name, text in worse.items()}
    return {name: (np.asarray(margins(model, pairs)) > 0).mean(1) for name, pairs in data.items()}


def align(
    setup: Setup, folder: RunFolder, sft: Params, model: RewardModel, rate: Any, keys: jax.Array
) -> Params:
    """Run GRPO against the reward model from policies [K, ...], at `rate` [] or [K]."""
    config = setup.config
    learner = make_group_learner(
        setup.lm,
        functools.partial(score, setup.lm),
        setup.text,
        sample_rows(setup.train.prompt, batch_size=config.prompts_per_step),
        group_size=config.group_size,
        epochs=2,
        minibatches=2,
        total_steps=config.rlhf_steps,
    )
    hparams = GRPO.hparams._replace(learning_rate=rate, kl_coef=config.kl_coef)
    how = {"folder": folder, "label": "4/4 RLHF        ", "show": ("reward", "objective/kl"), "keys": keys}
    how |= {"params": {"lm": sft}, "frozen": Frozen(sft, model)}
    return train_members(learner, hparams, config, config.rlhf_steps, **how).state.params["lm"]


def choose_alignment(setup: Setup, folder: RunFolder, sft: Params, model: RewardModel) -> dict[str, Any]:
    """Align at every rate; return the rates, and the shares [R, seeds] of validation prompts answered.

    `before` [seeds] is the SFT policy's share.
    """
    rates, seeds = setup.config.rlhf_rates, setup.config.tuning_seeds
    start, models, keys = (repeat_tuning(setup, x, len(rates)) for x in (sft, model, setup.keys(8)))
    rate = jnp.repeat(jnp.asarray(rates), seeds)
    tuned = align(setup, folder.sub("rlhf_tuning"), start, models, rate, keys)
    prompts = [pair.prompt for pair in setup.split.validation]

    def share(params: Params) -> np.ndarray:
        judged = [judge_all(prompts, member) for member in ask(setup, params, prompts, 9)]
        return np.array([one["verdicts"][ANSWERS] / len(prompts) for one in judged])

    before = share(repeat_tuning(setup, sft, 1)).tolist()
    return {"rates": list(rates), "before": before, "answers": share(tuned).reshape(-1, seeds).tolist()}


def ask(setup: Setup, params: Params, prompts: list[str], purpose: int) -> list[list[Written]]:
    """Return what each member writes to each prompt, [K][N]."""
    rows = encode_prompts(setup.tokenizer, prompts, setup.config.prompt_length)
    count = len(jax.tree.leaves(params)[0])
    written = jax.tree.map(np.asarray, setup.write(params, rows, setup.keys(purpose, count)))
    ended = ((written.tokens == setup.text.stop_token) & (written.real > 0)).any(-1)
    return [
        [Written(setup.tokenizer.decode(t[r > 0]), bool(e)) for t, r, e in zip(*member, strict=True)]
        for member in zip(*written, ended, strict=True)
    ]


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("assistants")
