"""A Python function of texts as a reward: the one reward that leaves the device."""

import functools
import inspect
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
    texts: Sequence[Any] | None
    row_of: Mapping[tuple[int, ...], int] | None


class _Texts(NamedTuple):
    """A batch of N texts for a host reward."""

    prompts: list[str]
    completions: list[str]
    given: dict[str, list[Any]]
    """What the function is called with, by name."""
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
        return {name: [values[i]] for name, values in self.given.items()}


def host_reward(
    f: Callable[..., Sequence[float]],
    tokenizer: TextDecoder,
    *,
    prompt_length: int,
    prompts: PaddedTokens | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    texts: Sequence[Any] | None = None,
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
        keywords as TRL calls its reward functions; it gets those that its signature has. The texts hold no
        special tokens, no padding and nothing behind the stop token.
      tokenizer: decodes them.
      prompt_length: P, tokens; what follows is the completion.
      prompts: [N, P] the prompts that columns and texts belong to, as the actor is given them; padding does
        not matter.
      columns: name -> N values, such as each prompt's reference answer; f gets those of the batch's prompts.
      texts: [N] the prompts as f gets them, each a text or a list of messages, whose completion is then a
        list of the assistant's message; of prompts that are the same tokens the first. None decodes tokens.
      name: what errors call the reward; None, the function's own name.

    Returns:
      A `Score` that reads no model.

    Raises:
      ValueError: if prompts come without columns and texts or these without prompts, one of these has
        another length, a column a name that is taken, a prompt two rows of which f gets different values, or
        two texts are cut to one prompt. When it runs, with the reward's name, the row and the beginning of
        its texts: for a prompt of no row, an exception in f, another number of rewards than completions, and
        a reward that is no finite number. Within a compiled program JAX puts the message at the end of a
        traceback, and may raise it as another type of exception.
    """
    name = str(name or getattr(f, "__name__", type(f).__name__))
    _check_table(name, prompts, columns, texts)
    columns = choose_arguments(f, columns or {})
    given = columns if texts is None else columns | choose_arguments(f, {"prompts": texts})
    row_of = None if prompts is None else _index_prompts(name, tokenizer, prompts, given)
    reward = _HostReward(f, name, tokenizer, prompt_length, columns, texts, row_of)
    host = functools.partial(_reward_batch, reward)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    return lambda model, tokens, mask: jax.pure_callback(
        host, number, tokens, mask, vmap_method="broadcast_all"
    )


def choose_arguments(f: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those keyword arguments that a function's signature has; all where it takes `**any`."""
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):  # some that are written in C have none
        return dict(given)
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return dict(given)
    named = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    return {name: value for name, value in given.items() if name in named}


def _reward_batch(reward: _HostReward, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the rewards [...] of texts [..., L], by one call of the user's function."""
    texts = _read_texts(reward, np.asarray(tokens), np.asarray(mask))
    try:
        rewards = reward.f(**texts.given)
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
    """Decode a batch [..., L], and look its rows up."""
    rows, real = (x.reshape(-1, x.shape[-1]) for x in (tokens, mask > 0))
    cut = reward.prompt_length
    ids = [
        [row[:cut][r[:cut]].tolist(), row[cut:][r[cut:]].tolist()] for row, r in zip(rows, real, strict=True)
    ]
    decoded = [[reward.tokenizer.decode(side) for side in pair] for pair in ids]
    prompts, completions = [p for p, _ in decoded], [c for _, c in decoded]
    given: dict[str, list[Any]] = {"prompts": prompts, "completions": completions}
    texts = _Texts(prompts, completions, choose_arguments(reward.f, given), tokens.shape[:-1])
    if reward.row_of is None:
        return texts
    places = []
    for i, (prompt, _) in enumerate(ids):
        if tuple(prompt) not in reward.row_of:
            raise ValueError(
                f"reward {reward.name!r} must have a row for every prompt; got none for "
                f"{texts.describe(i)}; give host_reward all prompts that are drawn"
            )
        places.append(reward.row_of[tuple(prompt)])
    given |= {name: [values[place] for place in places] for name, values in reward.columns.items()}
    if reward.texts is not None:
        given["prompts"] = [reward.texts[place] for place in places]
        said = zip(given["prompts"], completions, strict=True)
        given["completions"] = [c if isinstance(p, str) else [_say(c)] for p, c in said]
    return texts._replace(given=choose_arguments(reward.f, given))


def _say(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


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


def _check_table(
    name: str,
    prompts: PaddedTokens | None,
    columns: Mapping[str, Sequence[Any]] | None,
    texts: Sequence[Any] | None,
) -> None:
    """Raise ValueError unless every prompt has its value of each column, and its text."""
    if (prompts is None) != (columns is None and texts is None):
        raise ValueError(
            f"reward {name!r} must get prompts and columns together; got only "
            f"{'columns or texts' if prompts is None else 'prompts'}; a column's values are those of the "
            "prompts"
        )
    if prompts is None:
        return
    count = len(prompts.tokens)
    for column, values in (columns or {}).items():
        if column in ("prompts", "completions") or len(values) != count:
            raise ValueError(
                f"columns of reward {name!r} must hold one value for each of {count} prompts, and be "
                f"called neither prompts nor completions; got {column!r} of {len(values)}"
            )
    if texts is not None and len(texts) != count:
        raise ValueError(
            f"texts of reward {name!r} must be one for each of {count} prompts; got {len(texts)}"
        )


def _index_prompts(
    name: str, tokenizer: TextDecoder, prompts: PaddedTokens, given: Mapping[str, Sequence[Any]]
) -> dict[tuple[int, ...], int]:
    """Return the row of every prompt by its real tokens; what the function is given of equal ones must agree.

    Texts may be spelt in two ways that are the same tokens, but not be cut to them.
    """
    tokens, real = np.asarray(prompts.tokens), np.asarray(prompts.real) > 0
    row_of: dict[tuple[int, ...], int] = {}
    for row, ids in enumerate(tuple(t[r].tolist()) for t, r in zip(tokens, real, strict=True)):
        first = row_of.setdefault(ids, row)
        differ = [n for n, values in given.items() if first != row and not _agree(values[first], values[row])]
        cut = real[row].all() and "prompts" in differ
        if found := [n for n in differ if n != "prompts" or cut]:
            values = given[found[0]]
            remedy = (
                f"to which different prompts are cut: allow more than {len(ids)} tokens, --prompt-length"
                if cut
                else "keep one, or let the function name the columns that it takes instead of **columns"
            )
            raise ValueError(
                f"what reward {name!r} gets must agree for equal prompts; got {found[0]}="
                f"{str(values[first])[:SHOWN]!r} in row {first} and {str(values[row])[:SHOWN]!r} in row "
                f"{row} for {tokenizer.decode(ids)[:SHOWN]!r}; {remedy}"
            )
    return row_of


def _agree(a: Any, b: Any) -> bool:
    """Return whether two values are equal in all their parts, of which nan equals nan."""
    a, b = (x.tolist() if hasattr(x, "tolist") else x for x in (a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_agree(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_agree, a, b))
    return bool(a == b or (a != a and b != b))
