"""Tokenizers with a padding and a stop token, of published models or made here (`vocabularies.py`).

All stand on the `tokenizers` library, whose `tokenizer.json` is the format they are read from and written to.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from jaxrl_align.atomic import atomic_path
from jaxrl_align.data.tokens.backends import backend_errors, read_backend
from jaxrl_align.data.tokens.chat import ChatTemplate
from jaxrl_align.typed import short

PAD, STOP = "<pad>", "<stop>"
OURS = {"pad_token": PAD, "eos_token": STOP}


class Tokenizer:
    """Text to token ids and back; padding and stop are ids that no text encodes to.

    Args:
      backend: what splits text; the tokenizers made here have padding and stop at ids 0 and 1.
      special: the texts of the special tokens by Hugging Face's names: `pad_token`, `eos_token` (stop),
        `bos_token`.
      chat_template: how a conversation is written; None, not at all.
      place: the file that it comes from, for messages.
      stop_tokens: ids that end a text beside `eos_token`, as a model's folder may name them.

    Raises:
      ValueError: if a special token is not in the vocabulary, an id is beyond 32 bits, or the backend fails.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special: Mapping[str, str] = OURS,
        chat_template: ChatTemplate | None = None,
        place: str = "the tokenizer",
        stop_tokens: Iterable[int] = (),
    ) -> None:
        self._backend = backend
        self._place = place
        # Text that spells a special token is text: only code may write one.
        self._backend.encode_special_tokens = True
        self.special = dict(special)
        self.chat_template = chat_template
        with backend_errors(place):
            self.vocab_size: int = 1 + max(backend.get_vocab().values(), default=-1)
            """Number of rows that an embedding needs: the largest id and one, special tokens included."""
            if self.vocab_size > 2**31 - 1:
                raise ValueError(f"ids must be below 2^31; got {self.vocab_size - 1}")
            self.pad_token, self.stop_token = (self._id(name) for name in ("pad_token", "eos_token"))
            """Ids; None where the tokenizer has no such token."""
            own = [] if self.stop_token is None else [self.stop_token]
            self.stop_tokens: tuple[int, ...] = tuple(dict.fromkeys([*own, *stop_tokens]))
            """Every token that ends a text, `stop_token` first."""
            start = backend.token_to_id(special.get("bos_token", ""))
            around = backend.encode("").ids
            if outside := [i for i in around if i >= self.vocab_size]:
                raise ValueError(f"its post_processor writes ids of no token, {outside[:3]}")
            a, b, ab = (backend.encode(text, add_special_tokens=False).ids for text in ("a", "b", "ab"))
            self._spells_apart = backend.decode(a + b) == backend.decode(ab)
            """Pieces tokenised apart spell the whole; not so where every text begins with a space."""
        self.start_token: int | None = self.stop_token if start is None else start
        """Id of what stands before an empty text: the BOS, else the stop token; None without either."""

    def _id(self, name: str) -> int | None:
        if name not in self.special:
            return None
        found = self._backend.token_to_id(self.special[name])
        if found is None:
            raise ValueError(f"{name} must be in the vocabulary; got {short(self.special[name])}")
        return found

    def encode(self, text: str, *, special: bool = True, marked: bool = False) -> list[int]:
        """Return the token ids of a text.

        Args:
          text: a whole text, or a piece of one.
          special: with what the tokenizer itself puts around every text, such as a BOS; False for a piece
            that follows another.
          marked: a special token that the text spells is one, as a chat template writes them.

        Raises:
          ValueError: for a character outside a character tokenizer's vocabulary, and a text at which somebody
            else's backend fails.
        """
        return self.encode_batch([text], special=special, marked=marked)[0]

    def encode_batch(
        self, texts: Sequence[str], *, special: bool = True, marked: bool = False
    ) -> list[list[int]]:
        """Return the token ids of many texts, each as `encode` does."""
        texts = list(texts)
        self._backend.encode_special_tokens = not marked
        try:
            with backend_errors(self._place):
                rows = [e.ids for e in self._backend.encode_batch(texts, add_special_tokens=special)]
        finally:
            self._backend.encode_special_tokens = True
        if getattr(self._backend.model, "unk_token", None) == PAD:
            for text, row in zip(texts, rows, strict=True):
                if self.pad_token in row:
                    unknown = sorted({c for c in text if self._backend.token_to_id(c) is None})
                    raise ValueError(f"these characters are not in the vocabulary: {unknown}; remove them")
        return rows

    def encode_continuations(
        self, text: str, more: Sequence[str], *, special: bool = True, marked: bool = False
    ) -> tuple[list[int], list[list[int]]]:
        """Return the token ids of a text, and of each of the texts that may go on from it.

        Each is tokenised apart, so that no token reaches over the border and the text before it is always
        written alike. Where that spells something else, since the vocabulary begins every text with a space,
        as Llama 2's does, it is tokenised together with the text before it, and split behind that one's
        tokens.

        Args:
          text: what comes first.
          more: what may follow.
          special: as `encode`'s, of the first text.
          marked: as `encode`'s.

        Raises:
          ValueError: as `encode`.
        """
        apart = self.encode_batch(more, special=False, marked=marked)
        if self._spells_apart:
            return self.encode_batch([text], special=special, marked=marked)[0], apart
        before, *whole = self.encode_batch([text, *(text + t for t in more)], special=special, marked=marked)
        for i, (ids, joined) in enumerate(zip(apart, whole, strict=True)):
            if ids != joined[len(before) :] and joined[: len(before)] == before:
                with backend_errors(self._place):
                    a, b = (
                        self._backend.decode(x, skip_special_tokens=False) for x in (before + ids, joined)
                    )
                apart[i] = ids if a == b else joined[len(before) :]
        return before, apart

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids, without padding and stop."""
        with backend_errors(self._place):
            return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def special_token(self, text: str) -> int | None:
        """Return the id of a special token, which `decode` leaves out, by its text; of other texts None."""
        found = self._backend.token_to_id(text)
        return None if found is None or self.decode([found]) else found

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """Return the token ids of a conversation, whose turns the template marks with special tokens.

        A special token spelled in a message becomes one, as it does in `transformers`: remove them from
        messages that you do not trust.

        Args:
          messages: one mapping a turn, with its `role`, and mostly `content`.
          variables: of the template: `add_generation_prompt=True` ends where the assistant's next turn
            begins, `tools=[...]` offers tools; see `ChatTemplate.render_spans`.

        Raises:
          ImportError: if `jinja2` is not installed.
          ValueError: without a template, or for a conversation that it refuses.
        """
        return self._encode_chat(messages, variables)[0].ids

    def encode_demonstration(
        self, messages: Sequence[Mapping[str, Any]], **variables: Any
    ) -> tuple[list[int], list[bool]]:
        """Return the token ids of a conversation, and which of them the assistant says.

        Args:
          messages: as `encode_chat`'s.
          variables: likewise.

        Raises:
          ImportError, ValueError: as `encode_chat`; ValueError if the template marks nothing as said by the
            assistant, in `{% generation %}` blocks.
        """
        encoding, spans = self._encode_chat(messages, variables)
        if not spans:
            raise ValueError(
                "the chat template must mark what the assistant says by {% generation %}; got no such block "
                "in this conversation; edit the template, or add an assistant turn"
            )
        return encoding.ids, _mark_spans(encoding.offsets, spans)

    def encode_reply(
        self, messages: Sequence[Mapping[str, Any]], reply: Sequence[Mapping[str, Any]], **variables: Any
    ) -> tuple[list[int], list[int]]:
        """Return the token ids of a conversation up to the assistant's next turn, and those of that turn.

        No token reaches over the border; see `encode_continuations`.

        Args:
          messages: as `encode_chat`'s.
          reply: the messages that follow, the assistant's first; the template ends them as it ends any turn.
          variables: as `encode_chat`'s.

        Raises:
          ImportError, ValueError: as `encode_chat`; ValueError if the template writes `messages` otherwise
            before a reply than where it asks for one.
        """
        asked, said = self._render_reply(messages, reply, variables)
        before, (after,) = self.encode_continuations(asked, [said], special=False, marked=True)
        return before, after

    def encode_turns(
        self, messages: Sequence[Mapping[str, Any]], **variables: Any
    ) -> tuple[list[int], list[bool]]:
        """Return the token ids of a conversation up to the assistant's last turn, and which are its turns.

        For templates without `{% generation %}` blocks: a turn is what follows the generation prompt, up to
        its last stop token. One that the template writes otherwise once the conversation has gone on counts
        as nobody's. The last turn is encoded as `encode_reply` does; of an earlier one a token that reaches
        over its border counts as its own, as `encode_demonstration` counts.

        Args:
          messages: as `encode_chat`'s.
          variables: likewise.

        Raises:
          ImportError, ValueError: as `encode_reply`.
        """
        places = [i for i, message in enumerate(messages) if i and message["role"] == "assistant"]
        if not places:
            return [], []
        *earlier, (asked, said) = [
            self._render_reply(messages[:i], messages[i : i + 1], variables) for i in places
        ]
        spans = []
        for before, turn in earlier:
            encoding = self._encode_marked(turn)
            count = len(until_stop(encoding.ids, self.stop_tokens))
            turn = turn if count == len(encoding.ids) else turn[: encoding.offsets[count - 1][1]]
            if asked.startswith(before + turn):
                spans.append((len(before), len(before) + len(turn)))
        encoding = self._encode_marked(asked)
        _, (after,) = self.encode_continuations(asked, [said], special=False, marked=True)
        after = until_stop(after, self.stop_tokens)
        return encoding.ids + after, _mark_spans(encoding.offsets, spans) + [True] * len(after)

    def _render_reply(
        self, messages: Sequence[Mapping[str, Any]], reply: Any, variables: Mapping[str, Any]
    ) -> tuple[str, str]:
        """Return what a template writes up to the assistant's next turn, and what it writes as that turn."""
        template = self._demand_template()
        asked = template.render(messages, add_generation_prompt=True, **variables)
        whole = template.render([*messages, *reply], **variables)
        if not whole.startswith(asked):
            raise ValueError(
                "the chat template must write a conversation alike before a reply and where it asks for one; "
                f"got {asked[-40:]!r} where it asks; edit the template, or pass what it reads, such as "
                "enable_thinking=False"
            )
        return asked, whole[len(asked) :]

    def _encode_chat(self, messages: Any, variables: Mapping[str, Any]) -> tuple[Any, list[tuple[int, int]]]:
        text, spans = self._demand_template().render_spans(messages, **variables)
        return self._encode_marked(text), spans

    def _demand_template(self) -> ChatTemplate:
        if self.chat_template is None:
            raise ValueError("this tokenizer has no chat template; load one that has, or pass chat_template")
        return self.chat_template

    def _encode_marked(self, text: str) -> Any:
        """Encode what a template wrote: a special token that it spells is one."""
        self._backend.encode_special_tokens = False
        try:
            with backend_errors(self._place):
                return self._backend.encode(text, add_special_tokens=False)
        finally:
            self._backend.encode_special_tokens = True

    def with_pad(self, token: int) -> "Tokenizer":
        """Return the same tokenizer with another padding token, by its id."""
        special = self.special | {"pad_token": str(self._backend.id_to_token(token))}
        return Tokenizer(self._backend, special, self.chat_template, self._place, self.stop_tokens)

    def with_stops(self, tokens: Iterable[int]) -> "Tokenizer":
        """Return the same tokenizer with further tokens that end a text, by their ids."""
        more = [*self.stop_tokens, *tokens]
        return Tokenizer(self._backend, self.special, self.chat_template, self._place, more)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as a `tokenizer.json`."""
        with atomic_path(path) as temporary:
            temporary.write_text(self._backend.to_str(pretty=True), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `tokenizer.json` that `save` wrote.

        Raises:
          ValueError: if the file cannot be read, or ids 0 and 1 are not `<pad>` and `<stop>`.
        """
        backend = read_backend(path)
        got = backend.id_to_token(0), backend.id_to_token(1)
        if got != (PAD, STOP):
            raise ValueError(f"tokens 0 and 1 of {path} must be {PAD} and {STOP}; got {got[0]} and {got[1]}")
        return cls(backend)


def until_stop(ids: list[int], stop_tokens: Sequence[int]) -> list[int]:
    """Return tokens up to the last one that stops, or all where none does."""
    last = max((i for i, token in enumerate(ids) if token in stop_tokens), default=len(ids) - 1)
    return ids[: last + 1]


def _mark_spans(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Return which tokens have a character in one of the spans of a text."""
    marked, last = [], 0
    for start, end in offsets:
        # A token of spaces alone may be placed, empty, behind them.
        start = last if start == end else start
        marked.append(any(start < stop and begin < end for begin, stop in spans))
        last = end
    return marked
