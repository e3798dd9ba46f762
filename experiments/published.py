"""A published model with its tokenizer, as the experiments that ask one read it."""

from typing import Any, NamedTuple

from jaxrl_align.nets.transformer import LanguageModel, make_transformer
from jaxrl_align.runtime.huggingface import find_model, load_model
from jaxrl_align.types import Params


class Published(NamedTuple):
    """A model from a folder."""

    lm: LanguageModel
    params: Params
    tokenizer: Any
    stop_tokens: tuple[int, ...] = ()
    """Each ends a text."""


def load_published(folder: str | None) -> Published:
    """Read the model of a folder; empty or None, SmolLM2-135M-Instruct, which `make model` wrote.

    Raises:
      ValueError: for a folder without a model or without a tokenizer.
    """
    path = folder or find_model()
    found = load_model(path)
    if found.tokenizer is None:
        raise ValueError(f"{path} must hold a tokenizer.json; got none")
    return Published(make_transformer(found.config), found.params, found.tokenizer, found.stop_tokens)


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("assistants")
