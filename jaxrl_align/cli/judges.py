"""Where rewards come from: a reward model's folder, or a Python function in the working directory."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import align
from jaxrl_align.actors.scores import Score
from jaxrl_align.cli.config_files import read_values, suggest
from jaxrl_align.cli.datasets import round_up
from jaxrl_align.data.tokens.padding import right_pad
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.feedback import Question
from jaxrl_align.nets.transformer import LanguageModel, make_transformer
from jaxrl_align.runtime.huggingface import load_reward_model
from jaxrl_align.types import PaddedTokens

PROBE = 'The quick brown fox, 1234!\n<|im_start|> naïve 日本 {"a": [1.5]}'
"""A text on which different tokenizers are likely to differ."""


class Judge(NamedTuple):
    """A reward, from one of two places."""

    name: str
    """As the user named it."""
    function: Callable[..., Sequence[float]] | None
    """`f(prompts, completions, **columns)`; None, it is a model."""
    lm: LanguageModel | None = None
    model: align.RewardModel | None = None
    """Over `lm`."""
    tokenizer: Tokenizer | None = None
    stop_tokens: tuple[int, ...] = ()

    def as_score(self, tokenizer: Tokenizer, prompts: PaddedTokens, rows: Sequence[Question]) -> Score:
        """Return it as what actors take.

        Args:
          tokenizer: the policy's.
          prompts: [N, P] all prompts that will be drawn.
          rows: N, theirs as the file holds them: a function gets their prompts and their further fields.
        """
        if self.lm is not None:
            return align.model_reward(self.lm)
        assert self.function is not None
        return align.host_reward(
            self.function,
            tokenizer,
            prompt_length=prompts.tokens.shape[1],
            prompts=prompts,
            columns=columns_of(rows),
            texts=[row.prompt for row in rows],
            name=self.name,
        )


def columns_of(rows: Sequence[Question]) -> dict[str, list[Any]]:
    """Return the rows' further fields by name; None where a row has none."""
    names = dict.fromkeys(name for row in rows for name in row.columns)
    return {name: [row.columns.get(name) for row in rows] for name in names}


def load_judge(name: str) -> Judge:
    """Read the reward that a command names: a sequence classifier's folder, or `module:function`.

    Raises:
      ImportError, ValueError: for a folder that is no reward model, and a module or function that is missing
        or cannot be imported.
    """
    module, colon, function = name.partition(":")
    if colon and not Path(name).exists():
        if module.endswith(".py"):
            raise ValueError(f"--reward must name a module, not its file; got {name}; leave out .py")
        return Judge(name, _import_function(module, function))
    if not Path(name).is_dir():
        raise ValueError(
            f"--reward must be a reward model's folder, or module:function of the working directory; got "
            f"{name}, which is neither"
        )
    loaded = load_reward_model(name)
    lm = make_transformer(loaded.config)
    if loaded.tokenizer is None:
        raise ValueError(f"{name} must hold a tokenizer.json; got none; copy it from the base")
    return Judge(
        name, None, lm, align.RewardModel(loaded.params), loaded.tokenizer, tuple(loaded.stop_tokens)
    )


def hint_form(name: str, chat: bool) -> str:
    """Return a hint where a reward model learnt of prompts in another form than it is now to judge.

    Args:
      name: its folder; one that `jaxrl-align reward` wrote says what it was trained with.
      chat: whether the prompts are turns in a chat template now.
    """
    written = Path(name) / "run" / "config.json"
    try:
        own = read_values(written).get("chat")
    except (OSError, ValueError):  # another writer's folder says nothing
        return ""
    if not isinstance(own, bool) or own == chat:
        return ""
    how = "with --chat and reads prompts without" if own else "without --chat and reads prompts with it"
    return f"; it was trained {how}: unless its rows were lists of messages its scores mean little"


def _import_function(module: str, function: str) -> Callable[..., Sequence[float]]:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ValueError(f"--reward {module}:{function}: no module {module} in {os.getcwd()}") from error
    except Exception as error:  # whatever the user's own lines raise
        raise ValueError(
            f"--reward {module}:{function}: {module} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    if not callable(getattr(found, function, None)):
        known = [name for name, x in vars(found).items() if callable(x) and not name.startswith("_")]
        raise ValueError(
            f"--reward {module}:{function}: {module} has no such function{suggest(function, known)}"
        )
    return getattr(found, function)


def check_tokenizers(judge: Judge, policy: Tokenizer) -> None:
    """Raise ValueError for a reward model whose tokens are not the policy's."""
    own = judge.tokenizer
    if own is None:
        return
    same = own.vocab_size == policy.vocab_size and own.encode(PROBE) == policy.encode(PROBE)
    if not same:
        raise ValueError(
            f"--reward {judge.name} must read the policy's tokens; got another tokenizer; train it from a "
            "model of the same family: jaxrl-align reward"
        )


def score_tokens(judge: Judge, rows: Sequence[Sequence[int]], batch_size: int = 8) -> np.ndarray:
    """Return a reward model's scores [N] of whole texts, each its tokens.

    Raises:
      ValueError: for a text beyond the model's context.
    """
    assert judge.lm is not None and judge.model is not None
    longest, context = max(map(len, rows)), judge.lm.config.context
    if longest > context:
        raise ValueError(f"a text must fit the context of {context} tokens; got {longest}; shorten it")
    padded = right_pad(rows, round_up(longest, context), 0)
    score = align.score

    @jax.jit
    def read(model: Any, texts: PaddedTokens) -> jax.Array:
        return jax.lax.map(lambda text: score(lm, model, *text), texts, batch_size=batch_size)

    lm = judge.lm
    return np.asarray(read(judge.model, jax.tree.map(jnp.asarray, padded)))
