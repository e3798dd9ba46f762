"""Bad rewards of several parts, rewards on the host, and critics."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import actors, align, data, nets, text
from jaxrl_align.actors.scores import as_scored
from jaxrl_align.types import PaddedTokens

LM = nets.make_transformer(nets.TransformerConfig(20, width=8, layers=1, heads=1, context=8))
SMALL = nets.make_transformer(nets.TransformerConfig(16, width=4, layers=1, heads=1, context=4))
QUERY = text.TextConfig(prompt_length=3, response_length=2)
LETTERS = data.character_tokenizer("abcd")
ONE = align.token_reward(lambda tokens, mask: 1.0)
TWO = data.left_pad([[2, 3], [4]], 3, 0)


def combined(models, weights=None, **scores):
    """Read one text by a combined reward."""
    score = align.combine_rewards(scores or {"brief": ONE}, weights)
    return score(models, jnp.zeros(5, jnp.int32), jnp.ones(5))


def host(prompts=TWO, columns=None, f=lambda **given: [], **more):
    return align.host_reward(
        f, LETTERS, prompt_length=3, prompts=prompts, columns=columns, name="taste", **more
    )


def ask(params, critic=None):
    """Trace a rollout from parameters of some kind."""
    actor, hparams = actors.make_text_actor(LM, ONE, QUERY, critic=critic), align.RLHFHParams()
    prompts = PaddedTokens(np.full((1, 3), 2), np.ones((1, 3)))
    start = actor.init_env(None, hparams), jax.random.key(0), hparams, prompts
    return actor.rollout(params, actors.Frozen({}, None), *start)


def head(width):
    return align.RewardModel({"lm": {}, "head": {"kernel": jnp.zeros(width), "bias": 0.0}})


CASES = {
    "rewards: none": (
        lambda: align.combine_rewards({}),
        ValueError,
        r'at least one, .*"weights"; got \[\]; name',
    ),
    "rewards: one called weights": (
        lambda: align.combine_rewards({"weights": ONE}),
        ValueError,
        r'none called "weights"; got \[.weights.\]; name each after what it rewards',
    ),
    "rewards: a weight of no part": (
        lambda: combined(None, {"breif": 1.0}),
        ValueError,
        r"weights must be named after parts; got \['breif'\]; there are \['brief'\]",
    ),
    "rewards: a traced weight of no part": (
        lambda: combined({"weights": {"breif": 1.0}}),
        ValueError,
        r'frozen.reward_model\["weights"\] must be named after parts; got \[.breif.\]',
    ),
    "rewards: a model of no part": (
        lambda: combined({"breif": 1.0}),
        ValueError,
        r"frozen.reward_model must be named after parts; got \['breif'\]; there are \['brief', 'weights'\]",
    ),
    "rewards: one model for all parts": (
        lambda: combined(head(8)),
        ValueError,
        r"a dict of its parts' models; got RewardModel; pass Frozen\(reference, \{'brief': model\}\)",
    ),
    "rewards: weights side by side": (
        lambda: combined(None, {"brief": jnp.ones(4)}),
        ValueError,
        r"a weight must be one number; got shape \[4\] for 'brief'; to sweep it, vmap over frozen",
    ),
    "rewards: a part of each token": (
        lambda: combined(None, brief=lambda model, tokens, mask: mask),
        ValueError,
        r"score must return one number for a text, shape \[\]; got \[5\]",
    ),
    "rewards: no number": (
        lambda: as_scored({"total": 1.0}),
        ValueError,
        r"score must return one number for a text, or Scored\(total, parts\); got dict",
    ),
    "rewards: a named part of each token": (
        lambda: as_scored(actors.Scored(1.0, {"odd": jnp.ones(3)})),
        ValueError,
        r"part 'odd' of score must return one number for a text, shape \[\]; got \[3\]",
    ),
    "host reward: columns without prompts": (
        lambda: host(None, {"gold": [1, 2]}),
        ValueError,
        "reward 'taste' must get prompts and columns together; got only columns or texts; a column's",
    ),
    "host reward: prompts without columns": (
        lambda: host(),
        ValueError,
        "together; got only prompts; a column",
    ),
    "host reward: a column of another length": (
        lambda: host(columns={"gold": [1]}),
        ValueError,
        "columns of reward 'taste' must hold one value for each of 2 prompts, .*; got 'gold' of 1",
    ),
    "host reward: a column of a name that is taken": (
        lambda: host(columns={"prompts": [1, 2]}),
        ValueError,
        "be called neither prompts nor completions; got 'prompts' of 2",
    ),
    "host reward: two rows for one prompt": (
        lambda: host(data.left_pad([[2, 3], [4], [2, 3]], 4, 0), {"gold": ["x", "y", "z"]}),
        ValueError,
        "must agree for equal prompts; got gold='x' in row 0 and 'z' in row 2 for 'ab'; keep one, or let the "
        "function name the columns that it takes",
    ),
    "host reward: two prompts cut to one": (
        lambda: host(data.left_pad([[2, 3, 4]] * 2, 3, 0), {"gold": ["x", "y"]}, texts=["aabc", "babc"]),
        ValueError,
        "in row 1 for 'abc'; to which different prompts are cut: allow more than 3 tokens, --prompt-length",
    ),
    "host reward: two prompts cut to one, and no column": (
        lambda: host(data.left_pad([[2, 3, 4]] * 2, 3, 0), texts=["aabc", "babc"]),
        ValueError,
        "got prompts='aabc' in row 0 and 'babc' in row 1 for 'abc'; to which different prompts are cut",
    ),
    "host reward: a text for every second prompt": (
        lambda: host(texts=["a"]),
        ValueError,
        "texts of reward 'taste' must be one for each of 2 prompts; got 1",
    ),
    "critic: another trunk": (
        lambda: align.init_policy(LM, {}, trunk="own"),
        ValueError,
        'trunk must be "shared" or "separate"; got \'own\'',
    ),
    "critic: a head of another width": (
        lambda: align.init_policy(LM, {}, head(5)),
        ValueError,
        r'must fit its width; got shape \(5,\), width=8; .* trunk with trunk="separate"',
    ),
    "critic: none in the parameters": (
        lambda: ask(align.init_policy(LM, {}), critic=LM),
        ValueError,
        r"must hold lm and critic; got lm, value; start from init_policy\(.*separate.*or build .* without a",
    ),
    "critic: one that the learner was not built for": (
        lambda: ask(align.init_policy(LM, {}, trunk="separate")),
        ValueError,
        "must hold lm and value; got critic, lm; start from .*shared.* or build the learner with a critic",
    ),
    "critic: a context too short": (
        lambda: actors.make_text_actor(LM, ONE, QUERY, critic=SMALL),
        ValueError,
        "must fit the critic's context; got prompt_length=3 .* response_length=2 > context=4; shorten one",
    ),
    "critic: of another vocabulary": (
        lambda: actors.make_text_actor(LM, ONE, text.TextConfig(2, 2), critic=SMALL),
        ValueError,
        "the critic must know every token of the policy; got vocab_size=16 < 20; take a reward model of",
    ),
}
