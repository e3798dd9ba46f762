"""Actors: how experience is made in a domain, and how it is judged again under new parameters.

The names are imported when they are first used: gymnax starts JAX when it is imported, after which
`runtime.use_cpu_devices` has no effect, and language models need no gymnax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxrl_align.actors.answer_groups import GroupObservation, judge_answers, make_group_actor
    from jaxrl_align.actors.gym import greedy, make_actor, sampled
    from jaxrl_align.actors.normalisation import Normaliser, normalised
    from jaxrl_align.actors.recurrent import evaluate_recurrent_policy, make_recurrent_actor
    from jaxrl_align.actors.scores import Scored
    from jaxrl_align.actors.text import Frozen, TextObservation, make_text_actor
    from jaxrl_align.actors.value import epsilon_greedy, make_value_actor

# fmt: off
__all__ = [
    "Frozen", "GroupObservation", "Normaliser", "Scored", "TextObservation", "epsilon_greedy",
    "evaluate_recurrent_policy", "greedy", "judge_answers", "make_actor", "make_group_actor",
    "make_recurrent_actor", "make_text_actor", "make_value_actor", "normalised", "sampled",
]
# fmt: on
_MODULES = {
    "answer_groups": ("GroupObservation", "judge_answers", "make_group_actor"),
    "gym": ("greedy", "make_actor", "sampled"),
    "normalisation": ("Normaliser", "normalised"),
    "recurrent": ("evaluate_recurrent_policy", "make_recurrent_actor"),
    "scores": ("Scored",),
    "text": ("Frozen", "TextObservation", "make_text_actor"),
    "value": ("epsilon_greedy", "make_value_actor"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"jaxrl_align.actors.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
