"""Requests of texts, as evaluation harnesses make them: likelihoods of continuations and texts, and answers.

`harness.py` registers this with EleutherAI's lm-evaluation-harness, whose definitions it follows (0.4.13).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxrl_align.checks import check_counts
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.evaluate.scoring.choices import Choices, encode_pairs, make_option_scorer, share_prefix
from jaxrl_align.evaluate.scoring.stop_strings import GREEDY, make_text_writer
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.text.completion import bucket_length
from jaxrl_align.text.generation import Filters
from jaxrl_align.text.shared_prompt import count_virtual_tokens
from jaxrl_align.types import Params

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the most tokens that are written; the first that is given counts."""
FILTERS = ("top_k", "top_p", "min_p", "repetition_penalty")


def rolling_windows(tokens: Sequence[int], length: int, start: int) -> list[tuple[list[int], list[int]]]:
    """Cut a text into windows of which each is read with as many tokens before it as fit.

    The first window begins with the start token. Every token is predicted once; the last window is as long
    as the others and predicts only what is new.

    Args:
      tokens: of the whole text.
      length: tokens that a window reads, at least 1.
      start: stands before the text.

    Returns:
      Context and continuation of each window; a window reads all but the continuation's last token. None for
      a text without tokens.
    """
    check_counts(length=length)
    row = [start, *tokens]
    found = []
    for begin in range(1, len(row), length):
        end = min(begin + length, len(row))
        found.append((row[max(end - 1 - length, 0) : begin], row[begin:end]))
    return found


class TextScorer:
    """Answers requests by one language model.

    Args:
      lm: the language model.
      params: its parameters.
      tokenizer: with a start token.
      stop_tokens: each ends what is written, at least one.
      batch_size: rows at a time.
      length: tokens that are read at once; None, the context.
      new_tokens: the most that are written where a request names no number.
      seed: of what is sampled.

    Raises:
      ValueError: for counts below 1, no stop token, a tokenizer without a start token, or a length beyond the
        context.
    """

    def __init__(
        self,
        lm: LanguageModel,
        params: Params,
        tokenizer: Tokenizer,
        stop_tokens: Sequence[int],
        *,
        batch_size: int = 32,
        length: int | None = None,
        new_tokens: int = 256,
        seed: int = 0,
    ) -> None:
        most = lm.config.context - count_virtual_tokens(params)
        self.length = most if length is None else length
        check_counts(length=self.length, new_tokens=new_tokens, batch_size=batch_size)
        if self.length > most:
            raise ValueError(f"length must fit the context of {most} tokens; got {length}; leave it out")
        if tokenizer.start_token is None or not stop_tokens:
            raise ValueError("the tokenizer must have a BOS or EOS, and the model a stop token; got none")
        self.tokenizer = tokenizer
        self._lm, self._params, self._stop_tokens = lm, params, tuple(stop_tokens)
        self._start: int = tokenizer.start_token
        self._batch_size, self._new_tokens = batch_size, new_tokens
        self._score = make_option_scorer(lm, batch_size=batch_size)
        self._key = jax.random.key(seed)
        self._writers: dict[Any, Any] = {}

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Return, for each context and continuation, its log-likelihood and whether it is the greedy one.

        Special tokens that the texts spell are ones, as chat templates write them. A context that is too long
        loses its beginning.

        Raises:
          ValueError: for a continuation without tokens, or one longer than what is read at once.
        """
        encoded = encode_pairs(self.tokenizer, pairs, marked=True)
        for (_, text), (_, after) in zip(pairs, encoded, strict=True):
            if not 0 < len(after) <= self.length:
                raise ValueError(
                    f"a continuation must have 1 to {self.length} tokens; got {len(after)}: {text[:40]!r}"
                )
        return self._score_tokens(encoded)

    def _score_tokens(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Read each context once for all of its continuations, and once for all what they begin with."""
        options: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
        keys = []
        for before, after in pairs:
            context, option = tuple(before[-(self.length + 1 - len(after)) :]), tuple(after)
            options.setdefault(context, {})[option] = None
            keys.append((context, option))
        items = [Choices(context, tuple(own)) for context, own in options.items()]
        prefix, rest = share_prefix(items)
        scores = self._score(self._params, rest, prefix)
        found = {
            (item.context, option): (float(log_prob), bool(greedy))
            for item, score in zip(items, scores, strict=True)
            for option, log_prob, greedy in zip(item.options, *score, strict=True)
        }
        return [found[key] for key in keys]

    def score_texts(self, texts: Sequence[str]) -> list[float]:
        """Return the log-likelihood of each whole text behind the start token; see `rolling_windows`.

        The start token stands once, also where the tokenizer puts it before every text or the text spells it.
        """
        windows, owners = [], []
        for i, tokens in enumerate(self.tokenizer.encode_batch(texts, special=False, marked=True)):
            tokens = tokens[1:] if tokens[:1] == [self._start] else tokens
            own = rolling_windows(tokens, self.length, self._start)
            windows += own
            owners += [i] * len(own)
        log_probs = [log_prob for log_prob, _ in self._score_tokens(windows)]
        return np.bincount(owners, log_probs, len(texts)).tolist() if owners else [0.0] * len(texts)

    def write(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Return what the model writes behind each prompt, up to and without the first stop string.

        A prompt that is too long loses its beginning. The likeliest tokens are written, unless the settings
        ask for sampling.

        Args:
          requests: prompts, each with settings: `until`, a text or a list of them; the most tokens
            (`LENGTHS`); `do_sample`, `temperature` and `FILTERS`.

        Raises:
          ValueError: for another setting, or one that leaves no room for a prompt.
        """
        texts = [""] * len(requests)
        groups: dict[Any, list[int]] = {}
        for i, (_, settings) in enumerate(requests):
            groups.setdefault(self._read_settings(settings), []).append(i)
        for settings, members in groups.items():
            count, until, filters, temperature = settings
            room = self.length - count
            prompts = self.tokenizer.encode_batch([requests[i][0] for i in members], marked=True)
            prompts = [(row or [self._start])[-room:] for row in prompts]
            order = sorted(range(len(prompts)), key=lambda j: -len(prompts[j]))
            for begin in range(0, len(order), self._batch_size):
                part = order[begin : begin + self._batch_size]
                rows = [prompts[j] for j in part]
                rows += rows[-1:] * (min(self._batch_size, bucket_length(len(rows), 1)) - len(rows))
                self._key, key = jax.random.split(self._key)
                written = self._writer(count, until, filters)(self._params, rows, key, temperature)
                for j, text in zip(part, written, strict=False):
                    texts[members[j]] = text
        return texts

    def _writer(self, count: int, until: tuple[str, ...], filters: Filters) -> Any:
        name = count, until, filters
        if name not in self._writers:
            self._writers[name] = make_text_writer(
                self._lm,
                self.tokenizer,
                response_length=count,
                stop_tokens=self._stop_tokens,
                stop_strings=until,
                filters=filters,
            )
        return self._writers[name]

    def _read_settings(self, settings: Mapping[str, Any]) -> tuple[int, tuple[str, ...], Filters, float]:
        """Return the most tokens, the stop strings, the filters and the temperature of a request."""
        if unknown := sorted(settings.keys() - {*LENGTHS, *FILTERS, "until", "do_sample", "temperature"}):
            raise ValueError(f"settings of writing must be known; got {unknown}; leave them out")
        until = settings.get("until") or []
        count = int(next((settings[n] for n in LENGTHS if settings.get(n) is not None), self._new_tokens))
        if not 0 < count < self.length:
            raise ValueError(
                f"max_gen_toks must be 1 to {self.length - 1}, so that a prompt fits beside it; got {count}"
            )
        temperature = float(settings.get("temperature") or 0.0)
        stops = tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)
        if temperature == 0.0 or settings.get("do_sample") is False:
            return count, stops, GREEDY, 1.0
        given = {n: settings[n] for n in FILTERS if settings.get(n) is not None}
        given["top_k"] = given.get("top_k") or None
        return count, stops, Filters(**given), temperature
