"""A published model, a task of two answers, and how it is read: what all rungs of `ladder.py` share."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from published import load_published

from jaxrl_align.data.tokens.padding import left_pad, right_pad
from jaxrl_align.evaluate import Item, Task, draw_examples, load_task, make_prompts, read_items
from jaxrl_align.evaluate.run_task import choose_items
from jaxrl_align.feedback import pad_demonstrations
from jaxrl_align.types import Comparisons, PaddedTokens, Params, TokenBatch

ROWS = 10
"""Prompts that are read side by side."""


class Draw(NamedTuple):
    """What one draw of the training rows gives."""

    labelled: list[Item]
    """Whose right answers a person has written; the last ones stand next to a question."""
    others: list[Item]
    """Of which people compare answers, or which nobody has labelled."""


class Said(NamedTuple):
    """What the model says of N prompts."""

    first: np.ndarray
    """[N] the likeliest first token."""
    sampled: np.ndarray
    """[N] a first token drawn at temperature 1."""
    options: np.ndarray
    """[N, O] log-probabilities of the options' first tokens."""


class LadderTask:
    """A choice task whose options begin with different tokens, asked as a question that is answered freely.

    Training rows are those whose question has at most `length` tokens. The answer is the first token that the
    model writes: its format is right if it is any option's first.

    Raises:
      ValueError: for a task without fixed options, or options that begin alike; as `load_published`.
    """

    def __init__(self, folder: str, task: str, items: int, length: int) -> None:
        self.lm, self.params, self.tokenizer, _ = load_published(folder)
        self.length = length
        self.task: Task = load_task(task)
        self.items = choose_items(self.task, read_items(self.task), items)
        pool = read_items(self.task, "examples")
        fits = [len(prompt.tokens.context) <= length for prompt in self._prompts(pool, [])]
        self.pool = [item for item, fit in zip(pool, fits, strict=True) if fit]
        tokens = self._prompts(self.items[:1], [])[0].tokens
        self.options = np.array([option[0] for option in tokens.options])
        if len(set(self.options)) < len(tokens.options) or len({item.options for item in self.items}) > 1:
            raise ValueError(
                f"{task} must have the same options for all items, which begin with different tokens; got "
                f"first tokens {self.options.tolist()}; take another task"
            )
        self.answers = np.array([item.answer for item in self.items])
        self._read = jax.jit(self._read_all)

    def draw(self, seed: int, labelled: int, others: int) -> Draw:
        """Draw training rows, labels in turn; none is a test item."""
        rows = draw_examples(self.pool, self.items, labelled + others, seed=seed, balanced=True).examples
        return Draw(rows[others:], rows[:others])

    def ask(self, params: Params, examples: Sequence[Item] = ()) -> Said:
        """Return what the model says of the test items, with examples before each question or none."""
        rows = [list(prompt.tokens.context) for prompt in self._prompts(self.items, examples)]
        padded = left_pad(rows, max(map(len, rows)), self.tokenizer.pad_token)
        return self.read(params, jax.tree.map(jnp.asarray, padded))

    def read(self, params: Params, rows: PaddedTokens, seed: int = 0) -> Said:
        """Return what the model says after rows [N, L], samples drawn by the seed."""
        keys = jax.random.split(jax.random.key(seed), len(rows.tokens))
        return Said(*map(np.asarray, self._read(params, rows, keys)))

    def count_tokens(self, examples: Sequence[Item] = ()) -> float:
        """Return the mean number of tokens that the model reads for a question."""
        return float(np.mean([len(p.tokens.context) for p in self._prompts(self.items, examples)]))

    def questions(self, items: Sequence[Item]) -> PaddedTokens:
        """Return the questions of items without an example, [N, P] left-padded."""
        rows = [list(prompt.tokens.context) for prompt in self._prompts(items, [])]
        return jax.tree.map(jnp.asarray, left_pad(rows, self.length, self.tokenizer.pad_token))

    def demonstrations(self, items: Sequence[Item]) -> TokenBatch:
        """Return rows [N, P + 1] of questions and their right answers, which alone are learnt."""
        rows = []
        for item, prompt in zip(items, self._prompts(items, []), strict=True):
            context = prompt.tokens.context
            rows.append(([*context, self.options[item.answer]], [False] * len(context) + [True]))
        return pad_demonstrations(rows, self.length + 1)

    def comparisons(self, items: Sequence[Item], written: Sequence[int]) -> Comparisons:
        """Return comparisons [N] in which the right answer is preferred to another.

        Args:
          items: N.
          written: N first tokens of answers that the model wrote; where it is the right one, the other side
            is a wrong option.
        """
        chosen = [[self.options[item.answer]] for item in items]
        wrong = [self.options[(item.answer + 1) % len(self.options)] for item in items]
        rejected = [[no if yes[0] == w else w] for yes, no, w in zip(chosen, wrong, written, strict=True)]
        sides = (
            jax.tree.map(jnp.asarray, right_pad(rows, 1, self.tokenizer.pad_token))
            for rows in (chosen, rejected)
        )
        return Comparisons(self.questions(items), *sides)

    def _prompts(self, items: Sequence[Item], examples: Sequence[Item]) -> Any:
        context = self.lm.config.context
        return make_prompts(self.task, items, examples, self.tokenizer, room=context).prompts

    def _read_all(self, params: Params, rows: PaddedTokens, keys: jax.Array) -> tuple[jax.Array, ...]:
        def one(row: tuple[PaddedTokens, jax.Array]) -> tuple[jax.Array, ...]:
            text, key = row
            hidden, _ = self.lm.encode(params, text.tokens, text.real)
            log_prob = jax.nn.log_softmax(self.lm.logits(params, hidden[-1]))
            return log_prob.argmax(), jax.random.categorical(key, log_prob), log_prob[self.options]

        return jax.lax.map(one, (rows, keys), batch_size=ROWS)


def judge(said: Said, answers: np.ndarray, options: np.ndarray) -> dict[str, float]:
    """Return shares of test items: answers in the right format, right ones, and right between the options."""
    return {
        "format": float(np.isin(said.first, options).mean()),
        "right": float((said.first == options[answers]).mean()),
        "right of the options": float((said.options.argmax(1) == answers).mean()),
    }


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("ladder")
