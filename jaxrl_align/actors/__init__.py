"""Actors: how experience is made in a domain, and how it is judged again under new parameters."""

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
