"""The rows of `instruction_tuning.py`: questions with few answers, and instructions to learn from."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from instruction_tuning_sets import POOLS, TESTS, Row, find_archive, read_mixture

from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.feedback import pad_demonstrations
from jaxrl_align.types import TokenBatch

READERS: dict[str, Callable[[str], Sequence[str]]] = {
    "dashes": lambda prompt: re.findall(r"^ ?- (.+)$", prompt, re.MULTILINE),
    "brackets": lambda prompt: _between(r"\(choices are (.+?)\s*\):", prompt).split(" or "),
    "commas": lambda prompt: _between(r"^Possible answers: (.+)$", prompt).split(", "),
}


def _between(pattern: str, prompt: str) -> str:
    found = re.search(pattern, prompt, re.MULTILINE)
    return found.group(1) if found else ""


class Question(NamedTuple):
    """A row whose answer is one of a few."""

    set: str
    template: str
    prompt: str
    options: tuple[str, ...]
    answer: int
    """Place of the right one."""
    constant: float
    """Share of this template's rows that its commonest answer gets right; 0 where options are a row's own."""
    place: int
    """Of the row within its template's file."""


def normalise(text: str) -> str:
    """Return an answer in lower case, without the white space and the full stops around it."""
    return text.strip().rstrip(".").strip().casefold()


def make_questions(rows: Sequence[Row]) -> list[Question]:
    """Return what the rows of `TESTS` ask; a row whose own options lack its answer, or repeat, is left out.

    Raises:
      ValueError: a template has another answer than it is said to allow.
    """
    found: list[Question] = []
    said: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        allowed = TESTS.get(row.set, {}).get(row.template)
        if allowed is None:
            continue
        own = isinstance(allowed, str)
        options = tuple(text.strip() for text in (READERS[allowed](row.prompt) if own else allowed))
        if row.completion in options and len({normalise(text) for text in options}) == len(options):
            answer = options.index(row.completion)
            found.append(Question(row.set, row.template, row.prompt, options, answer, 0.0, row.place))
        elif not own:
            raise ValueError(f"{row.set}_{row.template} allows {allowed}; got {row.completion!r}")
        if not own:
            said.setdefault((row.set, row.template), []).append(row.completion)
    share = {key: max(map(texts.count, texts)) / len(texts) for key, texts in said.items()}
    return [item._replace(constant=share.get((item.set, item.template), 0.0)) for item in found]


def by(rows: Sequence[Any], field: str) -> dict[str, list[Any]]:
    """Return rows in groups by one of their fields, in order of first appearance."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(getattr(row, field), []).append(row)
    return found


def draw_in_turn(rows: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    """Return all rows, shuffled: their sets in turn, and within a set its templates in turn."""

    def interleave(queues: Sequence[Sequence[Any]]) -> list[Any]:
        longest = max(map(len, queues), default=0)
        return [queue[i] for i in range(longest) for queue in queues if i < len(queue)]

    shuffle = lambda group: [group[i] for i in rng.permutation(len(group))]
    templates = lambda own: [shuffle(group) for group in by(own, "template").values()]
    return interleave([interleave(templates(own)) for own in by(rows, "set").values()])


def draw_orders(sizes: Mapping[str, int], least: int, draws: int, seed: int) -> list[list[str]]:
    """Return orders of the sets, of which breadth n takes the first n; no two begin alike.

    Args:
      sizes: rows of each set.
      least: an order begins with a set of so many rows, so that breadth 1 repeats none.
      draws: orders.
      seed: of the draw.

    Raises:
      ValueError: too few sets are so large.
    """
    rng = np.random.default_rng(seed)
    large = [name for name, size in sizes.items() if size >= least]
    if len(large) < draws:
        raise ValueError(
            f"{draws} orders must begin with sets of {least} rows each; got {len(large)} such sets"
        )
    firsts = [large[i] for i in rng.permutation(len(large))[:draws]]
    names = list(sizes)
    rest = [[names[i] for i in rng.permutation(len(names))] for _ in firsts]
    return [
        [first, *(name for name in order if name != first)] for first, order in zip(firsts, rest, strict=True)
    ]


class Examples(NamedTuple):
    """Rows of the pool that fit, with their tokens."""

    rows: list[Row]
    shown: list[tuple[list[int], list[bool]]]
    """Of each row its tokens, and which of them are learnt: those of the completion."""

    def sizes(self) -> dict[str, int]:
        """Return the number of rows of each set."""
        return {name: len(own) for name, own in by(self.rows, "set").items()}


def encode_examples(
    tokenizer: Tokenizer, rows: Sequence[Row], pool: Sequence[str], *, length: int, answer: int
) -> Examples:
    """Return the rows of the pool that fit; a completion beyond `answer` tokens is cut, and does not end.

    Args:
      tokenizer: has a stop token.
      rows: of any sets.
      pool: names of sets.
      length: the most tokens of prompt and completion.
      answer: the most tokens of a completion, the stop token included.

    Raises:
      ValueError: a set of the pool has no row that fits.
    """
    rows = [row for row in rows if row.set in pool]
    prompts = tokenizer.encode_batch([row.prompt for row in rows])
    texts = tokenizer.encode_batch([row.completion for row in rows], special=False)
    kept, shown = [], []
    for row, prompt, text in zip(rows, prompts, texts, strict=True):
        said = [*text, tokenizer.stop_token][:answer]
        if len(prompt) + len(said) <= length:
            kept.append(row)
            shown.append((prompt + said, [False] * len(prompt) + [True] * len(said)))
    if missing := sorted(set(pool) - {row.set for row in kept}):
        raise ValueError(f"every set of the pool must have a row of {length} tokens; {missing} have none")
    return Examples(kept, shown)


def draw_batch(examples: Examples, sets: Sequence[str], count: int, length: int, seed: int) -> TokenBatch:
    """Return `count` rows [count, length] of some sets, in turn; none twice before all were taken."""
    index = {row: i for i, row in enumerate(examples.rows)}
    own = draw_in_turn([row for row in examples.rows if row.set in sets], np.random.default_rng(seed))
    return pad_demonstrations([examples.shown[index[own[i % len(own)]]] for i in range(count)], length)


def draw_questions(
    tokenizer: Tokenizer, rows: Sequence[Row], each: int, length: int, seed: int
) -> list[Question]:
    """Return about `each` questions of every set of `TESTS` whose prompts have at most `length` tokens."""
    items = make_questions(rows)
    sizes = [len(ids) for ids in tokenizer.encode_batch([item.prompt for item in items])]
    fitting = [item for item, size in zip(items, sizes, strict=True) if size <= length]
    rng = np.random.default_rng(seed)
    return [item for own in by(fitting, "set").values() for item in draw_in_turn(own, rng)[:each]]


class Mixture:
    """T0's rows, parted into what is learnt and what is asked."""

    def __init__(self, pilot: bool = False, hold: str = "families") -> None:
        """Read the archive; errors as `find_archive` and `read_mixture`."""
        self.rows, self.pool = read_mixture(find_archive()), POOLS[hold]
        unseen = [row for row in self.rows if row.set not in self.pool]
        self.asked = [row for row in unseen if (row.place >= 150) == pilot]


def describe(questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Return what a report needs to know of each question."""
    return [
        {
            "set": q.set,
            "template": q.template,
            "answer": q.options[q.answer],
            "uniform": 1 / len(q.options),
            "constant": max(q.constant, 1 / len(q.options)),
        }
        for q in questions
    ]


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("instruction_tuning")
