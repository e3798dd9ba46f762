"""The world of `instruction_tuning.py` whose tasks are exact: an instruction of two words, asked of a list.

The first word says which symbol of the list is meant (`RULES`), the second how the answer is written
(`FORMS`): 64 tasks, of which 16 are never learnt. Every word is in six learnt and two unseen ones.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.evaluate.scoring.stop_strings import GREEDY
from jaxrl_align.nets.transformer import LanguageModel, TransformerConfig, make_transformer
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import train_members, with_data
from jaxrl_align.text.generation import TextConfig, generate
from jaxrl_align.types import PaddedTokens, Params, TokenBatch

RULES = ("first", "second", "third", "fourth", "last", "largest", "smallest", "middle-sized")
FORMS = (
    "itself",
    "twice",
    "thrice",
    "behind a mark",
    "before a mark",
    "in brackets",
    "the next",
    "the opposite",
)
TASKS = len(RULES) * len(FORMS)
UNSEEN_TASKS = 2 * len(RULES)
SYMBOLS, ITEMS = 16, 5
"""Symbols in all, and of a list, where none repeats."""
MARK, OPEN, CLOSE, ASK, STOP, PAD, WORD = range(SYMBOLS, SYMBOLS + 7)
"""The first word's token is `WORD` and the rule, the second's the form behind all rules."""
VOCABULARY = WORD + len(RULES) + len(FORMS)
ASKED, ANSWER = 3 + ITEMS, 4
"""Tokens of a prompt and, with its end, of the longest answer."""


class Asked(NamedTuple):
    """Instructions with their lists."""

    rule: jax.Array
    """[N] int."""
    form: jax.Array
    items: jax.Array
    """[N, ITEMS] symbols."""


def pick(rule: jax.Array, items: jax.Array) -> jax.Array:
    """Return the symbol of ONE list that a rule means; symbols are ordered by their numbers."""
    return jnp.concatenate([items, jnp.sort(items)[jnp.array([ITEMS - 1, 0, ITEMS // 2])]])[rule]


def write_answer(form: jax.Array, symbol: jax.Array) -> jax.Array:
    """Return ONE answer [ANSWER], which ends in `STOP`, padded."""
    x, after, opposite = symbol, (symbol + 1) % SYMBOLS, (symbol + SYMBOLS // 2) % SYMBOLS
    rows = (
        (x, STOP, PAD, PAD),
        (x, x, STOP, PAD),
        (x, x, x, STOP),
        (MARK, x, STOP, PAD),
        (x, MARK, STOP, PAD),
        (OPEN, x, CLOSE, STOP),
        (after, STOP, PAD, PAD),
        (opposite, STOP, PAD, PAD),
    )
    return jnp.stack([jnp.stack([jnp.asarray(token, jnp.int32) for token in row]) for row in rows])[form]


def draw_lists(key: chex.PRNGKey, tasks: jax.Array) -> Asked:
    """Return a list for each of the tasks [N], whose number is 8 x rule + form."""
    draw = lambda key: jax.random.permutation(key, SYMBOLS)[:ITEMS]
    items = jax.vmap(draw)(jax.random.split(key, tasks.shape[0]))
    return Asked(tasks // len(FORMS), tasks % len(FORMS), items)


def write_prompts(asked: Asked) -> jax.Array:
    """Return prompts [N, ASKED]: the two words, the list, and the sign that asks."""
    words = jnp.stack([WORD + asked.rule, WORD + len(RULES) + asked.form], 1)
    return jnp.concatenate([words, asked.items, jnp.full((len(words), 1), ASK)], 1).astype(jnp.int32)


def as_rows(asked: Asked) -> TokenBatch:
    """Return prompts with their right answers [N, ASKED + ANSWER]; the answers alone are learnt."""
    answers = jax.vmap(write_answer)(asked.form, jax.vmap(pick)(asked.rule, asked.items))
    tokens = jnp.concatenate([write_prompts(asked), answers], 1)
    real = (tokens != PAD).astype(jnp.float32)
    said = (jnp.arange(ASKED + ANSWER) >= ASKED)[None]
    return TokenBatch(tokens, real, real * said)


def judge_answers(asked: Asked, said: jax.Array) -> dict[str, jax.Array]:
    """Return for answers [N, ANSWER], padded behind their end, whether each is right or has the format.

    An answer has the `format` if it is what the second word makes of some symbol of the list.
    """
    every = jax.vmap(jax.vmap(write_answer, (None, 0)))(asked.form, asked.items)
    meant = jax.vmap(write_answer)(asked.form, jax.vmap(pick)(asked.rule, asked.items))
    return {"format": (said[:, None] == every).all(-1).any(1), "right": (said == meant).all(-1)}


def split_tasks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the learnt tasks in a drawn order [48], of which breadth n takes n, and the unseen ones [16]."""
    rng = np.random.default_rng(seed)
    rules, forms = rng.permutation(len(RULES)), rng.permutation(len(FORMS))
    rule, form = np.divmod(np.arange(TASKS), len(FORMS))
    unseen = (forms[form] - rules[rule]) % len(FORMS) < UNSEEN_TASKS // len(RULES)
    return rng.permutation(np.flatnonzero(~unseen)), np.flatnonzero(unseen)


def words_known(learnt: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Return which unseen tasks [U] have both of their words in learnt ones."""
    rule, form = (set(part.tolist()) for part in np.divmod(learnt, len(FORMS)))
    return np.array([r in rule and f in form for r, f in zip(*np.divmod(unseen, len(FORMS)), strict=True)])


def make_asker(lm: LanguageModel, lists: int) -> Any:
    """Return `(params, tasks [U], key) -> {measure: [U]}`, shares over `lists` lists of each task."""
    config = TextConfig(ASKED, ANSWER, STOP, PAD)

    def ask(params: Params, tasks: jax.Array, key: chex.PRNGKey) -> dict[str, jax.Array]:
        asked = draw_lists(key, jnp.repeat(tasks, lists))
        prompts = write_prompts(asked)
        real = jnp.ones(prompts.shape)
        write = lambda row, mask: generate(lm, params, PaddedTokens(row, mask), key, config, filters=GREEDY)
        found = judge_answers(asked, jax.vmap(write)(prompts, real).tokens)
        return {name: hits.reshape(-1, lists).mean(1) for name, hits in found.items()}

    return ask


def learn_world(config: Any, folder: RunFolder) -> dict[str, Any]:
    """Train small models on more and more tasks, at the same number of rows, and ask the unseen ones.

    Returns:
      By breadth: `unseen` {measure: [seeds, 16]}, `learnt` {measure: [seeds, 48]}, of which the first n were
      learnt, and `known` [seeds, 16], whether both words of an unseen task were.
    """
    seeds, steps, breadths = config.seeds, config.world_steps, config.world_breadths
    splits = [split_tasks(config.seed + i) for i in range(seeds)]
    # A row of this table lists a member's tasks, each equally often, to be drawn from alike.
    tables = jnp.array([np.resize(learnt[:n], 48) for n in breadths for learnt, _ in splits])
    context = ASKED + ANSWER
    lm = make_transformer(TransformerConfig(VOCABULARY, config.width, config.layers, 4, context))

    def sample(key: chex.PRNGKey, table: jax.Array) -> TokenBatch:
        key_task, key_list = jax.random.split(key)
        tasks = table[jax.random.randint(key_task, (config.batch_size,), 0, len(table))]
        return as_rows(draw_lists(key_list, tasks))

    learner = with_data(
        lambda table: make_lm_learner(
            lm, lambda key: sample(key, table), total_steps=steps, warmup_steps=steps // 20
        )
    )
    keys = jnp.tile(config.keys(), len(breadths))
    options = {"folder": folder, "label": "world", "checkpoint_every": max(1, steps // 4)}
    hparams = LMHParams(config.learning_rate)
    params = train_members(learner, hparams, config, steps, keys=keys, frozen=tables, **options).state.params
    ask = jax.jit(jax.vmap(make_asker(lm, config.lists)))
    found: dict[str, Any] = {}
    for name, which in {"learnt": 0, "unseen": 1}.items():
        tasks = jnp.tile(jnp.array([split[which] for split in splits]), (len(breadths), 1))
        shares = jax.tree.map(np.asarray, ask(params, tasks, jnp.tile(config.keys(1), len(breadths))))
        for k, n in enumerate(breadths):
            own = slice(k * seeds, (k + 1) * seeds)
            found.setdefault(str(n), {})[name] = {measure: x[own] for measure, x in shares.items()}
    for n in breadths:
        found[str(n)]["known"] = np.array([words_known(learnt[:n], unseen) for learnt, unseen in splits])
    return found


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("instruction_tuning")
