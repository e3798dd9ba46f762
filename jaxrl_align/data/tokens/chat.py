"""Chat templates: a conversation written as the text that a model was trained on.

A template is a Jinja program that came with somebody's model. It runs in `chat_sandbox.py`, where it can
neither reach Python's inside nor change what it is given, ends within seconds, and writes no more than a
conversation could need. It may call `range`, `dict`, `namespace`, `cycler`, `joiner`, `raise_exception`,
`strftime_now`, and the filters and methods that the sandbox names.
"""

import datetime
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrl_align.typed import brief

LONGEST = 2**16
"""Characters of a template's source."""
CHARACTERS = 2**22
"""What a rendering may make of text and elements, beside a share for each character it is given."""
SECONDS = 2.0
"""How long a rendering may compute, likewise."""


class ChatTemplate:
    """A chat template, compiled when it is first used.

    Args:
      source: the Jinja program, `chat_template` of a `tokenizer_config.json`.
      special: the texts it may name, such as `{"bos_token": "<s>", "eos_token": "</s>"}`.
      origin: whose it is, for messages: "of models/smollm2".
    """

    def __init__(self, source: str, special: Mapping[str, str] | None = None, origin: str = "") -> None:
        self.source = source
        self._name = f"the chat template {origin}".strip()
        self._special = dict(special or {})
        self._compiled: dict[int, Any] = {}

    def _template(self) -> Any:
        """Return the program, compiled for this thread alone: a rendering counts in it what it has left."""
        thread = threading.get_ident()
        if thread not in self._compiled:
            self._compiled[thread] = self._compile()
        return self._compiled[thread]

    def _compile(self) -> Any:
        try:
            import jinja2

            from jaxrl_align.data.tokens.chat_sandbox import BoundedEnvironment
        except ImportError as error:
            raise ImportError("chat templates need jinja2; pip install 'jaxrl-align[hf]'") from error
        if len(self.source) > LONGEST:
            raise ValueError(
                f"{self._name} must have at most {LONGEST} characters; got {len(self.source)}; is it damaged?"
            )
        environment = BoundedEnvironment(raise_exception=_refuse, strftime_now=_now)
        try:
            return environment.from_string(self.source)
        except (jinja2.TemplateError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"{self._name} is no Jinja template: {brief(error)}") from error

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """Return the text of a conversation; see `render_spans`."""
        return self.render_spans(messages, **variables)[0]

    def render_spans(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False, **variables: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of a conversation, and where in it the template has `{% generation %}` blocks.

        Args:
          messages: one mapping a turn, at least its `role` ("system", "user", "assistant", "tool").
          add_generation_prompt: end where the assistant's next turn begins.
          variables: whatever else the template reads, such as `tools`, as JSON data.

        Raises:
          ImportError: if `jinja2` is not installed.
          ValueError: for an empty conversation, a turn without a role, a variable that is no JSON data, a
            source that is no template, a conversation that the template refuses, or a template that leaves
            the sandbox, writes without end, or takes seconds.
        """
        if not messages:
            raise ValueError("the conversation is empty; give at least one message")
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) or "role" not in message:
                raise ValueError(f"message {i} must have a role; got {message!r}")
        # As in transformers: a null entry of a message counts as missing.
        turns = [{key: value for key, value in message.items() if value is not None} for message in messages]
        given = {"tools": None, "documents": None} | self._special | variables
        given |= {"messages": turns, "add_generation_prompt": add_generation_prompt}
        try:
            # A template gets plain copies: other objects have methods that the sandbox knows nothing of.
            texts = {name: json.dumps(value) for name, value in given.items()}
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"messages and variables of a chat template must be JSON data; got others ({error}); write "
                "tools as JSON schemas"
            ) from error
        template, size = self._template(), sum(map(len, texts.values()))
        given = {name: json.loads(text) for name, text in texts.items()}
        meter = template.environment.meter
        meter.start(CHARACTERS + size * (64 + len(turns)), SECONDS + size * 1e-6)
        try:
            for part in template.generate(**given):
                meter.written.append(part)
        except Exception as error:  # a template is a program and may fail in any way
            raise ValueError(f"{self._name} failed on this conversation: {brief(error)}") from error
        return "".join(meter.written), meter.spans


def _now(form: str) -> str:
    if len(form) > 100:
        raise ValueError("it asks for the date in a form of more than 100 characters")
    return datetime.datetime.now().strftime(form)


def _refuse(message: str) -> None:
    raise ValueError(message)
