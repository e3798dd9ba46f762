"""Chat templates: a conversation written as the text that a model was trained on.

A template is a Jinja program that came with somebody's model. It runs in Jinja's immutable sandbox: it can
neither reach Python's inside nor change what it is given, and gets no functions but the four that published
templates call.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any


class ChatTemplate:
    """A compiled chat template.

    Args:
      source: the Jinja program, `chat_template` of a `tokenizer_config.json`.
      special: the texts it may name, such as `{"bos_token": "<s>", "eos_token": "</s>"}`.

    Raises:
      ImportError: if `jinja2` is not installed.
      ValueError: if the source is no template.
    """

    def __init__(self, source: str, special: Mapping[str, str] | None = None) -> None:
        try:
            import jinja2.ext
            import jinja2.sandbox
        except ImportError as error:
            raise ImportError("chat templates need jinja2; pip install 'jaxrl-align[hf]'") from error
        self.source = source
        self._special = dict(special or {})
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template is no Jinja template: {error}") from error

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> str:
        """Return the text of a conversation.

        Args:
          messages: one mapping a turn, at least `role` ("system", "user", "assistant") and `content`.
          add_generation_prompt: end where the assistant's next turn begins.

        Raises:
          ValueError: for an empty conversation, a turn without role or content, a conversation that the
            template refuses, or a template that leaves the sandbox.
        """
        if not messages:
            raise ValueError("the conversation is empty; give at least one message")
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise ValueError(f"message {i} must have a role and a content; got {message!r}")
        try:
            return self._template.render(
                **self._special,
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # a template is a program and may fail in any way
            raise ValueError(f"the chat template failed on this conversation: {error}") from error


def _to_json(value: Any, indent: int | None = None) -> str:
    """Return JSON as it is; Jinja's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise ValueError(message)
