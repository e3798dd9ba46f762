"""Groups that are too small, policies and frozen trees that group methods cannot use."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import actors, align, nets, text
from jaxrl_align.types import PaddedTokens
from tests.tiny import draw_params

LM = nets.make_transformer(nets.TransformerConfig(20, width=8, layers=1, heads=1, context=8))
QUERY = text.TextConfig(prompt_length=3, response_length=2)
ONE = align.token_reward(lambda tokens, mask: 1.0)
WEIGHTS = draw_params(LM)
WHOLE = actors.Frozen({}, None)
PROMPTS = PaddedTokens(np.full((3, 3), 2), np.ones((3, 3)))


def make(config=QUERY, **settings):
    return align.make_group_learner(LM, ONE, config, **settings)


def step(params=None, frozen=WHOLE, prompts=PROMPTS, **settings):
    """Trace one step, without compiling it."""
    learner = make(**settings)
    state = learner.init(jax.random.key(0), align.GroupHParams(), params or {"lm": {"tokens": jnp.ones(1)}})
    return jax.eval_shape(learner.step, state, prompts, frozen)


CASES = {
    "groups: a KL penalty of PPO's": (
        lambda: make(text.TextConfig(prompt_length=3, response_length=2, kl_penalty="sequence")),
        ValueError,
        r"groups say where the KL is paid by penalty=; got TextConfig\(kl_penalty='sequence'\)",
    ),
    "groups: of one, for GRPO": (
        lambda: make(group_size=1),
        ValueError,
        "a group needs 2 answers or more; got 1; raise the group size",
    ),
    "groups: of one, for RLOO": (
        lambda: make(group_size=1, method=align.RLOO),
        ValueError,
        "a group needs 2 answers or more; got 1; raise the group size",
    ),
    "groups: of none": (
        lambda: make(group_size=0, method=align.REINFORCE_PLUS_PLUS),
        ValueError,
        "group_size must be a whole number of at least 1; got 0",
    ),
    "groups: a context too short": (
        lambda: make(text.TextConfig(6, 4)),
        ValueError,
        "must fit the context; got prompt_length=6 .* response_length=4 > context=8; shorten one of them",
    ),
    "groups: another place for the penalty": (
        lambda: make(method=align.GRPO._replace(kl="rewards")),
        ValueError,
        "the KL penalty must be one of loss, unbiased, reward, none; got 'rewards'",
    ),
    "groups: advantages of whole answers": (
        lambda: make(method=align.GRPO._replace(advantages=lambda reward, mask: reward.sum(2))),
        ValueError,
        r"advantages must be \[B, G, T\], .*; got shape \(1, 8\) for \(1, 8, 2\); wrap .* in by_answer",
    ),
    "groups: a policy with a critic": (
        lambda: step({"lm": jnp.ones(1), "value": jnp.ones(1)}),
        ValueError,
        r"params must hold lm alone, .*; got lm, value; start from \{\"lm\": a model's parameters or",
    ),
    "groups: nothing frozen": (
        lambda: step(frozen=None),
        ValueError,
        r"a reference and a reward model are needed; pass step\(..., frozen=Frozen\(...\)\)",
    ),
    "groups: no reference for the penalty": (
        lambda: step(frozen=actors.Frozen(None, None)),
        ValueError,
        r"a KL penalty \(loss\) needs a reference; got None; .*, or take a method with kl=\"none\"",
    ),
    "groups: no prompts": (
        lambda: step(prompts=None),
        ValueError,
        r"this actor has no prompts; pass step\(state, batch\), or give sample_prompts",
    ),
    "groups: prompts of another length": (
        lambda: step(prompts=PaddedTokens(np.full((3, 4), 2), np.ones((3, 4)))),
        ValueError,
        r"prompts must be integers and their mask, each \[B, 3\], B >= 1; got int32 \(3, 4\)",
    ),
    "groups: minibatches of split groups": (
        lambda: step({"lm": WEIGHTS}, actors.Frozen(WEIGHTS, None), group_size=2, minibatches=2),
        ValueError,
        "minibatches must divide trajectories per rollout; got .*=3, minibatches=2; try minibatches=1 or 3",
    ),
}
