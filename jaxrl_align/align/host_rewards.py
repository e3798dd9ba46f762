"""A Python function of texts as a reward: the one reward that leaves the device."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.actors.scores import Score
from jaxrl_align.types import PaddedTokens

SHOWN = 40
"""Characters of a prompt and of a completion that an error shows."""
LARGEST = float(np.finfo(np.float32).max)


class TextDecoder(Protocol):
    """Whatever turns token ids into text, such as `data.Tokenizer`."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids, without special tokens."""


class _HostReward(NamedTuple):
    """The parts of one reward on the host; `host_reward` says what each is."""

    f: Callable[..., Sequence[float]]
    name: str
    tokenizer: TextDecoder
    prompt_length: int
    columns: Mapping[str, Sequence[Any]]
    row_of: Mapping[tuple[int, ...], int] | None


class _Texts(NamedTuple):
    """A batch as a host reward is called with it: N prompts, completions and columns."""

    prompts: list[str]
    completions: list[str]
    columns: dict[str, list[Any]]
    shape: tuple[int, ...]
    """Of the batch on the device; its product is N."""

    def describe(self, i: int) -> str:
        """Name one row by its place in the batch and the beginnings of its texts."""
        place = [int(axis) for axis in np.unravel_index(i, self.shape)] if self.shape else []
        row = place[0] if len(place) == 1 else place
        prompt, completion = self.prompts[i][:SHOWN], self.completions[i][:SHOWN]
        return f"row {row} (prompt {prompt!r}, completion {completion!r})"

    def take(self, i: int) -> dict[str, Any]:
        """Return one row's keyword arguments, each a list of one."""
        columns = {name: [values[i]] for name, values in self.columns.items()}
        return {"prompts": [self.prompts[i]], "completions": [self.completions[i]], **columns}


def host_reward(
    f: Callable[..., Sequence[float]],
    tokenizer: TextDecoder,
    *,
    prompt_length: int,
    prompts: PaddedTokens | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    name: str | None = None,
) -> Score:
    """Return a Python function of texts as a score: THIS LEAVES THE DEVICE.

    Each rollout stops until the host has answered: tokens are copied to it, decoded, scored in Python, and
    the numbers copied back. It has no gradient, cannot be exported to where there is no Python, and is called
    once for a whole batch, that of all members under `vmap` included. JAX takes it for pure: equal texts
    must get equal rewards, and it may be called twice or, where nothing reads the reward, not at all. Prefer
    `token_reward` for what tokens can say. Keep it on one device: a program that spans several of one process
    (members sharded over CPU devices, say) can wait for the host for ever.

    Args:
      f: `f(prompts=[...], completions=[...], **columns) -> N finite numbers`, all lists of N, called by
        keywords as TRL calls its reward functions. The texts hold no special tokens, no padding and nothing
        behind the stop token.
      tokenizer: decodes them.
      prompt_length: P, tokens; what follows is the completion.
      prompts: [N, P] the prompts that the columns belong to, as the actor is given them; padding does not
        matter.
      columns: name -> N values, such as each prompt's reference answer; f gets those of the batch's prompts.
      name: what errors call the reward; None, the function's own name.

    Returns:
      A `Score` that reads no model.

    Raises:
      ValueError: if prompts come without columns or columns without prompts, a column has another length or
        a name that is taken, or a prompt has two different rows. When it runs, with the reward's name, the
        row and the beginning of its texts: for a prompt of no row, an exception in f, another number of
        rewards than completions, and a reward that is no finite number. Within a compiled program JAX puts
        the message at the end of a traceback, and may raise it as another type of exception.
    """
    name = str(name or getattr(f, "__name__", type(f).__name__))
    row_of = _index_prompts(name, tokenizer, prompts, columns)
    reward = _HostReward(f, name, tokenizer, prompt_length, columns or {}, row_of)
    host = functools.partial(_reward_batch, reward)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    return lambda model, tokens, mask: jax.pure_callback(
        host, number, tokens, mask, vmap_method="broadcast_all"
    )


def _reward_batch(reward: _HostReward, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the rewards [...] of texts [..., L], by one call of the user's function."""
    texts = _read_texts(reward, np.asarray(tokens), np.asarray(mask))
    given = {"prompts": texts.prompts, "completions": texts.completions, **texts.columns}
    try:
        rewards = reward.f(**given)
    except Exception as error:
        raise _blame(reward, texts, error) from error
    try:
        rewards = list(rewards)
    except TypeError as error:
        raise ValueError(
            f"reward {reward.name!r} must return a list of one number for each completion; got "
            f"{type(rewards).__name__}; wrap it in a list"
        ) from error
    if len(rewards) != len(texts.prompts):
        raise ValueError(
            f"reward {reward.name!r} must return one number for each of {len(texts.prompts)} completions; "
            f"got {len(rewards)}; append one for every completion, 0 where it does not apply"
        )
    numbers = np.array([_as_finite(reward, texts, i, x) for i, x in enumerate(rewards)], np.float32)
    return numbers.reshape(texts.shape)


def _read_texts(reward: _HostReward, tokens: np.ndarray, mask: np.ndarray) -> _Texts:
    """Decode a batch [..., L], and look its columns up."""
    rows, real = (x.reshape(-1, x.shape[-1]) for x in (tokens, mask > 0))
    cut = reward.prompt_length
    ids = [
        [row[:cut][r[:cut]].tolist(), row[cut:][r[cut:]].tolist()] for row, r in zip(rows, real, strict=True)
    ]
    decoded = [[reward.tokenizer.decode(side) for side in pair] for pair in ids]
    texts = _Texts([p for p, _ in decoded], [c for _, c in decoded], {}, tokens.shape[:-1])
    if reward.row_of is None:
        return texts
    places = []
    for i, (prompt, _) in enumerate(ids):
        if tuple(prompt) not in reward.row_of:
            raise ValueError(
                f"reward {reward.name!r} must have columns for every prompt; got none for "
                f"{texts.describe(i)}; give host_reward all prompts that are drawn"
            )
        places.append(reward.row_of[tuple(prompt)])
    columns = {name: [values[place] for place in places] for name, values in reward.columns.items()}
    return texts._replace(columns=columns)


def _as_finite(reward: _HostReward, texts: _Texts, i: int, given: Any) -> float:
    """Return a reward as a number that float32 holds."""
    try:
        # A text has no __float__, though float() would read it.
        number = float(given) if hasattr(given, "__float__") else None
    except (TypeError, ValueError):
        number = None
    if number is None or not abs(number) <= LARGEST:
        raise ValueError(
            f"reward {reward.name!r} must return finite numbers; got {repr(given)[:SHOWN]} in "
            f"{texts.describe(i)}; return 0 where it does not apply"
        )
    return number


def _blame(reward: _HostReward, texts: _Texts, error: Exception) -> ValueError:
    """Return what to raise for an exception in the user's function, with the first row that raises alone."""
    for i in range(len(texts.prompts)):
        try:
            reward.f(**texts.take(i))
        except Exception as alone:
            return ValueError(
                f"reward {reward.name!r} must not raise; got {type(alone).__name__}: {alone} in "
                f"{texts.describe(i)}; catch it and return a number"
            )
    return ValueError(
        f"reward {reward.name!r} must not raise; got {type(error).__name__}: {error} for a batch of "
        f"{len(texts.prompts)} rows, of which none raises alone; catch it and return numbers"
    )


def _index_prompts(
    name: str,
    tokenizer: TextDecoder,
    prompts: PaddedTokens | None,
    columns: Mapping[str, Sequence[Any]] | None,
) -> dict[tuple[int, ...], int] | None:
    """Return the row of every prompt by its real tokens; equal prompts must have equal rows."""
    if (prompts is None) != (columns is None):
        raise ValueError(
            f"reward {name!r} must get prompts and columns together; got only "
            f"{'columns' if prompts is None else 'prompts'}; a column's values are those of the prompts"
        )
    if prompts is None or columns is None:
        return None
    tokens, real = np.asarray(prompts.tokens), np.asarray(prompts.real) > 0
    for column, values in columns.items():
        if column in ("prompts", "completions") or len(values) != len(tokens):
            raise ValueError(
                f"columns of reward {name!r} must hold one value for each of {len(tokens)} prompts, and be "
                f"called neither prompts nor completions; got {column!r} of {len(values)}"
            )
    row_of: dict[tuple[int, ...], int] = {}
    for row, ids in enumerate(tuple(t[r].tolist()) for t, r in zip(tokens, real, strict=True)):
        first = row_of.setdefault(ids, row)
        for column, values in columns.items():
            if first != row and not np.array_equal(values[first], values[row]):
                raise ValueError(
                    f"columns of reward {name!r} must agree for equal prompts; got {column}="
                    f"{str(values[first])[:SHOWN]!r} in row {first} and {str(values[row])[:SHOWN]!r} in row "
                    f"{row} for {tokenizer.decode(ids)[:SHOWN]!r}; keep one"
                )
    return row_of
