"""A command's rows: read, measured, parted into those that train and those that judge, as arrays."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_align import feedback
from jaxrl_align.cli.options import DataOptions, LengthOptions
from jaxrl_align.data.batches import HostBatches, row_places
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.feedback import Comparison, Correction, Feedback, Label, Ranking, Rating
from jaxrl_align.placement import row_devices
from jaxrl_align.types import TokenBatch

ROUND = 16
"""Lengths are chosen as multiples of it."""
QUANTILES = (0.5, 0.95, 1.0)
SHOWN = 8
"""Tokens of a document without a prompt that a sample goes on from."""


class Divided(NamedTuple):
    """Rows to train on and rows that judge."""

    train: list[Any]
    held_out: list[Any]
    skipped: list[str]
    """A message for each row that was left out."""
    hashes: dict[str, str]
    """SHA-256 of the file as `data_sha256`; as `held_out_sha256` of the file of the rows that judge, or of
    the numbers of those that a share holds out. A run is continued with the same."""


class Encoded(NamedTuple):
    """Rows as arrays, and what is to be said of them before a run."""

    train: Any
    """A tree of NumPy arrays [N, ...]."""
    held_out: Any
    """Likewise; None without any."""
    prompts: list[list[int]]
    """Token ids of prompts for sample tables, held-out ones where there are any."""
    lengths: tuple[int, int]
    """Of prompt and completion; for rows that are one sequence 0 and its length."""
    report: list[str]
    """What the rows' tokens are, in lines."""
    skipped: list[str]


Reader = Callable[..., Feedback]
"""`(path, skip_bad_rows=) -> Feedback`."""


def divide_rows(options: DataOptions, read: Reader, seed: int) -> Divided:
    """Read a command's rows and hold some out, whole prompts where several rows share one.

    A share is kept to: a prompt of more rows than are still wanted is passed by for others, unless every
    prompt has more, where the one of the fewest is held out.

    Raises:
      ValueError: for what the reader refuses, a share that leaves nothing to train on, or a file of held-out
        rows that is missing.
    """
    path = Path(options.data)
    found = read(path, skip_bad_rows=options.skip_bad_rows)
    rows, skipped, hashes = list(found.rows), list(found.skipped), {"data_sha256": file_sha256(path)}
    if options.held_out in (None, "none"):
        return Divided(rows, [], skipped, hashes)
    share = _as_share(options.held_out)
    if share is None:
        judges = read(Path(options.held_out), skip_bad_rows=options.skip_bad_rows)
        hashes["held_out_sha256"] = file_sha256(Path(options.held_out))
        return Divided(rows, list(judges.rows), [*skipped, *judges.skipped], hashes)
    groups = _group_rows(rows)
    order = np.random.default_rng(seed).permutation(len(groups))
    wanted, chosen = max(1, round(share * len(rows))), set[int]()
    for i in order:
        if len(chosen) + len(groups[i]) <= wanted:
            chosen |= set(groups[i])
    chosen = chosen or set(groups[min(order, key=lambda i: len(groups[i]))])
    if len(chosen) == len(rows):
        raise ValueError(
            f"--held-out {options.held_out} must leave rows to train on; got {len(rows)} rows of "
            f"{len(groups)} prompts in {path}; pass --held-out None, or give more rows"
        )
    train = [row for i, row in enumerate(rows) if i not in chosen]
    numbers = sorted(map(int, chosen))
    hashes["held_out_sha256"] = hashlib.sha256(json.dumps(numbers).encode()).hexdigest()
    return Divided(train, [rows[i] for i in numbers], skipped, hashes)


def _as_share(given: str) -> float | None:
    """Return a share between 0 and 1; None for the name of a file."""
    try:
        share = float(given)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise ValueError(
            f"--held-out must be a share between 0 and 1, or a file; got {given}; None holds out none"
        )
    return share


def _group_rows(rows: Sequence[Any]) -> list[list[int]]:
    """Return the numbers of the rows of each prompt; of rows without one, each alone."""
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        key = json.dumps(row.prompt, sort_keys=True) if hasattr(row, "prompt") else f"row {i}"
        groups.setdefault(key, []).append(i)
    return list(groups.values()) if len(groups) > 1 else [[i] for i in range(len(rows))]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_chat(rows: Sequence[Any], chat: bool) -> list[Any]:
    """Return rows whose plain prompts are the user's turn, where `chat` says so."""
    if not chat:
        return list(rows)
    plain = lambda row: isinstance(getattr(row, "prompt", None), str)
    turn = lambda row: row._replace(prompt=[{"role": "user", "content": row.prompt}])
    return [turn(row) if plain(row) else row for row in rows]


def quantile_text(name: str, counts: Sequence[int] | np.ndarray, chosen: int) -> str:
    """Return token lengths in one line: `prompts 12, 31, 40 (median, 95%, longest) -> 48`."""
    values = ", ".join(f"{int(q):,}" for q in np.quantile(counts, QUANTILES, method="higher"))
    return f"{name} of {values} tokens (median, 95%, longest), padded to {chosen:,}"


def round_up(length: int, most: int) -> int:
    """Return the next multiple of `ROUND`, at most `most`."""
    return max(1, min(-(-length // ROUND) * ROUND, most))


def encode_feedback(
    divided: Divided, tokenizer: Tokenizer, options: DataOptions, wanted: LengthOptions, context: int
) -> Encoded:
    """Return comparisons, rankings, ratings or labels as arrays; corrections are comparisons.

    Raises:
      ValueError: for rows that do not fit and are not skipped, or rows of several kinds.
    """
    train, held_out = (_prepare(rows, options.chat) for rows in (divided.train, divided.held_out))
    counts, refused = feedback.measure_rows(tokenizer, [*train, *held_out])
    if refused and not options.skip_bad_rows:
        raise ValueError(f"{refused[0]}; --skip-bad-rows leaves it out")
    lengths = choose_lengths(counts, wanted, context)
    kept, skipped = [], list(divided.skipped)
    how = {"prompt_length": lengths[0], "completion_length": lengths[1]}
    for rows in (train, held_out):
        if options.skip_bad_rows and rows:
            fitting = feedback.choose_fitting(tokenizer, rows, **how)
            rows, skipped = list(fitting.rows), [*skipped, *fitting.skipped]
        kept.append(rows)
    encode = ENCODERS[type(kept[0][0])]
    arrays: list[Any] = [encode(tokenizer, rows, **how) if rows else None for rows in kept]
    cut = int((counts[:, 0] > lengths[0]).sum())
    report = [
        quantile_text("prompts", counts[:, 0], lengths[0])
        + (f"; {cut:,} longer ones lose their beginning" if cut else ""),
        quantile_text("completions", counts[:, 1], lengths[1]),
    ]
    shown = arrays[1] or arrays[0]
    prompts = [t[r > 0].tolist() for t, r in zip(*map(np.asarray, shown.prompt), strict=True)]
    return Encoded(arrays[0], arrays[1], _unlike(prompts), lengths, report, skipped)


def _prepare(rows: Sequence[Any], chat: bool) -> list[Any]:
    whole = [feedback.compare_correction(row) if isinstance(row, Correction) else row for row in rows]
    kinds = {type(row) for row in whole}
    if wrong := [kind.__name__ for kind in kinds if kind not in ENCODERS]:
        raise ValueError(f"rows must be judgements that train alone; got {wrong[0]}; rate them first")
    if len(kinds) > 1:
        raise ValueError(f"rows must be of one kind; got {', '.join(sorted(k.__name__ for k in kinds))}")
    return as_chat(whole, chat)


ENCODERS: dict[type, Callable[..., Any]] = {
    Comparison: feedback.encode_comparisons,
    Ranking: feedback.encode_rankings,
    Rating: feedback.encode_ratings,
    Label: feedback.encode_ratings,
}


def choose_lengths(counts: np.ndarray, wanted: LengthOptions, context: int) -> tuple[int, int]:
    """Return the tokens of prompt and completion: as given, or what rows [N, 2] need and the context holds.

    Raises:
      ValueError: if a given one is below 1, or they do not fit the context.
    """
    for name, given in dataclasses.asdict(wanted).items():
        if given is not None and given < 1:
            raise ValueError(
                f"--{name.replace('_', '-')} must be at least 1; got {given}; leave it out for what rows need"
            )
    longest = counts.max(axis=0)
    completion = wanted.completion_length
    if completion is None:
        half = min(round_up(int(longest[0]), context), context // 2)
        room = context - (half if wanted.prompt_length is None else wanted.prompt_length)
        completion = round_up(int(longest[1]), max(room, 1))
    prompt = wanted.prompt_length
    if prompt is None:
        prompt = round_up(int(longest[0]), max(context - completion, 1))
    if prompt + completion > context:
        raise ValueError(
            f"prompt and completion must fit the context of {context} tokens; got --prompt-length {prompt} "
            f"and --completion-length {completion}; shorten one of them"
        )
    return prompt, completion


def encode_sft(
    divided: Divided, tokenizer: Tokenizer, options: DataOptions, length: int | None, context: int
) -> Encoded:
    """Return demonstrations as `TokenBatch`es.

    Raises:
      ValueError: for rows that do not fit and are not skipped.
    """
    skipped = list(divided.skipped)
    parts: list[list[Any]] = []
    for rows in (divided.train, divided.held_out):
        found = []
        for row in as_chat(rows, options.chat):
            try:
                found.append((row, *feedback.tokenise_demonstrations(tokenizer, [row])))
            except ValueError as error:
                if not options.skip_bad_rows:
                    raise ValueError(f"{error}; --skip-bad-rows leaves it out") from error
                skipped.append(str(error))
        parts.append(found)
    counts = np.array([len(ids) for found in parts for _, (ids, _) in found] or [0])
    limit = round_up(int(counts.max()), context) if length is None else length
    if not 1 < limit <= context:
        raise ValueError(f"--length must be from 2 to the context of {context} tokens; got {limit}")
    kept = []
    for found in parts:
        long = [row.source for row, (ids, _) in found if len(ids) > limit]
        if long and not options.skip_bad_rows:
            raise ValueError(
                f"{long[0]}: a row must fit {limit} tokens; {len(long)} do not; allow more with --length, or "
                "--skip-bad-rows leaves them out"
            )
        skipped += [f"{source}: longer than {limit} tokens" for source in long]
        kept.append([shown for _, shown in found if len(shown[0]) <= limit])
    if not kept[0]:
        raise ValueError(f"rows must be left to train on; all are bad: {skipped[0][:200]}")
    arrays: list[TokenBatch | None] = [
        feedback.pad_demonstrations(rows, limit) if rows else None for rows in kept
    ]
    prompts = [ids[: said.index(True) or SHOWN] for ids, said in kept[1] or kept[0]]
    report = [quantile_text("rows", counts, limit)]
    return Encoded(arrays[0], arrays[1], _unlike(prompts), (0, limit), report, skipped)


def encode_questions(
    divided: Divided,
    tokenizer: Tokenizer,
    options: DataOptions,
    length: int | None,
    most: int,
    pad_token: int,
) -> Encoded:
    """Return prompts as arrays.

    Args:
      divided: rows of prompts.
      tokenizer: the model's.
      options: whether plain prompts are the user's turn.
      length: that prompts are padded to; None, what they need.
      most: what the context leaves for them.
      pad_token: fills up.

    Raises:
      ValueError: if the length does not fit, or a prompt has no tokens.
    """
    parts = [as_chat(rows, options.chat) for rows in (divided.train, divided.held_out)]
    ids = [feedback.tokenise_prompts(tokenizer, rows) for rows in parts]
    counts = [len(one) for part in ids for one in part]
    limit = round_up(max(counts), most) if length is None else length
    if not 1 <= limit <= most:
        raise ValueError(f"--prompt-length must be from 1 to {most}, beside the response; got {limit}")
    arrays = [feedback.pad_prompts(part, limit, pad_token) if part else None for part in ids]
    cut = sum(count > limit for count in counts)
    report = [
        quantile_text("prompts", counts, limit)
        + (f"; {cut:,} longer ones lose their beginning" if cut else "")
    ]
    shown = [one[-limit:] for one in ids[1] or ids[0]]
    return Encoded(arrays[0], arrays[1], _unlike(shown), (limit, 0), report, list(divided.skipped))


def _unlike(prompts: Sequence[list[int]]) -> list[list[int]]:
    return [list(ids) for ids in dict.fromkeys(map(tuple, prompts)) if ids]


def count_rows(train: Any, held_out: Any) -> tuple[int, int]:
    """Return the number of rows that train and of those that judge."""
    count = lambda data: 0 if data is None else len(jax.tree.leaves(data)[0])
    return count(train), count(held_out)


def shuffled_batches(data: Any, *, batch_size: int, seed: int) -> HostBatches:
    """Return `(first step, steps) -> tree [steps, B, ...]`: every row once a pass, in a fresh order each.

    It is a function of its arguments alone, so that a continued run reads what an uninterrupted one reads.

    Args:
      data: a tree of arrays [N, ...] on the host.
      batch_size: B; a batch may reach over the end of a pass.
      seed: of the orders.
    """
    rows = len(jax.tree.leaves(data)[0])
    order = functools.lru_cache(maxsize=4)(lambda turn: np.random.default_rng([seed, turn]).permutation(rows))

    def read(first_step: int, steps: int, part: slice) -> Any:
        places = row_places(first_step, steps, batch_size, part)
        index = np.array([order(int(place) // rows)[place % rows] for place in places.flat])
        return jax.tree.map(lambda x: np.asarray(x)[index].reshape(*places.shape, *x.shape[1:]), data)

    return HostBatches(batch_size, read)


def whole_batches(data: Any, batch_size: int) -> list[Any]:
    """Return all held-out rows in batches, the last one shorter where they fill none.

    On a mesh it is parted once more: rows that are more than its devices must be a multiple of them.
    """
    rows = len(jax.tree.leaves(data)[0])
    ends = sorted({*range(0, rows, batch_size), rows - rows % row_devices(), rows})
    take = lambda begin, end: jax.tree.map(lambda x: np.asarray(x)[begin:end], data)
    return [take(*both) for both in itertools.pairwise(ends)]
