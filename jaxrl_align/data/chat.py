"""Chat templates: a conversation written as the text that a model was trained on.

A template is a Jinja program that came with somebody's model. It runs in Jinja's immutable sandbox: it can
neither reach Python's inside nor change what it is given, and gets no functions but the four that published
templates call.
"""

import datetime
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class ChatTemplate:
    """A chat template, compiled when it is first used.

    Args:
      source: the Jinja program, `chat_template` of a `tokenizer_config.json`.
      special: the texts it may name, such as `{"bos_token": "<s>", "eos_token": "</s>"}`.
    """

    def __init__(self, source: str, special: Mapping[str, str] | None = None) -> None:
        self.source = source
        self._special = dict(special or {})
        self._spans: list[tuple[int, int]] = []
        self._written: list[str] = []

    @functools.cached_property
    def _template(self) -> Any:
        try:
            import jinja2.ext
            import jinja2.sandbox
        except ImportError as error:
            raise ImportError("chat templates need jinja2; pip install 'jaxrl-align[hf]'") from error

        class Generation(jinja2.ext.Extension):
            """The tag `{% generation %}` around what the assistant says."""

            tags = {"generation"}  # noqa: RUF012, Jinja's way

            def parse(self, parser: Any) -> Any:
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return jinja2.nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

            def mark(extension, caller: Callable[[], str]) -> str:  # noqa: N805, self is the template
                text, start = caller(), sum(map(len, self._written))
                self._spans.append((start, start + len(text)))
                return text

        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template is no Jinja template: {error}") from error

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
            the sandbox.
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
            given = {name: json.loads(json.dumps(value)) for name, value in given.items()}
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"messages and variables of a chat template must be JSON data; got others ({error}); write "
                "tools as JSON schemas"
            ) from error
        template, self._spans, self._written = self._template, [], []
        try:
            for part in template.generate(**given):
                self._written.append(part)
        except Exception as error:  # a template is a program and may fail in any way
            raise ValueError(f"the chat template failed on this conversation: {error}") from error
        return "".join(self._written), self._spans


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as it is, as `transformers` does; Jinja's own filter would escape it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise ValueError(message)
