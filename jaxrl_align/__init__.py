"""Train agents and align language models in JAX: pure losses, vmappable learners, RLHF as one jitted step.

Each room is imported when it is first used: `from jaxrl_align import losses, rl, align`.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxrl_align import (
        actors,
        align,
        cli,
        data,
        envs,
        evaluate,
        feedback,
        finite,
        learner,
        losses,
        nets,
        placement,
        pretrain,
        rl,
        runtime,
        text,
        types,
    )

__version__ = version("jaxrl-align")

# fmt: off
__all__ = [
    "__version__", "actors", "align", "cli", "data", "envs", "evaluate", "feedback", "finite", "learner",
    "losses", "nets", "placement", "pretrain", "rl", "runtime", "text", "types",
]
# fmt: on


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"jaxrl_align.{name}")
    raise AttributeError(f"module 'jaxrl_align' has no attribute {name!r}; it has {', '.join(__all__)}")
