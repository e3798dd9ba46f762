"""Bad rows for learning from preferences without a reward model."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import align, nets, pretrain
from jaxrl_align.types import Comparisons, PaddedTokens, Rankings, Ratings

LM = nets.make_transformer(nets.TransformerConfig(20, width=4, layers=1, heads=1, context=6))


def text(*rows):
    """Return texts [N, 4], padded on the right."""
    real = [[1.0] * len(row) + [0.0] * (4 - len(row)) for row in rows]
    return PaddedTokens(
        jnp.array([[*row, *[0] * (4 - len(row))] for row in rows], jnp.int32), jnp.array(real)
    )


GOOD = {"prompt": text([2, 3], [4]), "chosen": text([5, 6], [7, 8]), "rejected": text([9], [3, 1])}


def refer(**change):
    """Ask for the reference's log-probabilities of comparisons."""
    return align.with_reference(LM, None, Comparisons(**(GOOD | change)))


def build(**change):
    """Build the learner of a loss that needs no reference."""
    sample = pretrain.sample_rows(Comparisons(**(GOOD | change)), batch_size=8)
    return align.make_direct_learner(LM, sample, objective=align.orpo_objective(LM))


def rate(values, rows=2, **options):
    ratings = Ratings(text(*[[2]] * rows), text(*[[3]] * rows), np.array(values))
    return align.with_reference(LM, None, ratings, **options)


def use(objective, batch):
    return objective(LM)(None, None, batch, jax.random.key(0), align.DirectHParams())


PAIRS = Comparisons(**GOOD)
LEFT = PaddedTokens(jnp.array([[9, 9, 5, 6], [7, 8, 9, 9]]), jnp.array([[0.0, 0, 1, 1], [1, 1, 0, 0]]))
CASES = {
    "preferences: another row's answer beyond the context": (
        lambda: align.with_reference(
            LM, None, Ratings(text([2] * 4, [4]), text([3], [3] * 4), np.array([1.0, 0.0]))
        ),
        ValueError,
        "another row's answer, .* must fit the context of 6 tokens; got 8, the prompt of row 0 and the "
        "answer of row 1; shorten them, leave one out, or pass others=",
    ),
    "preferences: another tokenizer's tokens": (
        lambda: refer(rejected=text([20], [3])),
        ValueError,
        "tokens must be from 0 to 19; got 0 to 20; was another tokenizer used",
    ),
    "preferences: another tokenizer's tokens, sampled": (
        lambda: build(chosen=text([20, 20], [20])),
        ValueError,
        "tokens must be from 0 to 19; got 0 to 20; was another tokenizer used",
    ),
    "preferences: an empty answer": (
        lambda: refer(rejected=text([9], [])),
        ValueError,
        r"rejected must hold at least one token; got none in rows \[1\]",
    ),
    "preferences: an empty answer, sampled": (
        lambda: build(chosen=text([], [])),
        ValueError,
        r"chosen must hold at least one token; got none in rows \[0, 1, 2, 3, 4\] and 3 more",
    ),
    "preferences: an empty prompt": (
        lambda: refer(prompt=text([], [4])),
        ValueError,
        r"prompt must hold at least one token; got none in rows \[0\]",
    ),
    "preferences: one and the same answer": (
        lambda: refer(rejected=text([9], [7, 8])),
        ValueError,
        r"chosen and rejected must differ; got one and the same answer in rows \[1\]; leave them out",
    ),
    "preferences: the same answer padded elsewhere": (
        lambda: refer(rejected=LEFT),
        ValueError,
        r"must differ; got one and the same answer in rows \[0, 1\]; leave them out",
    ),
    "preferences: beyond the context": (
        lambda: refer(prompt=text([2], [4, 4, 4]), rejected=text([9], [3, 1, 1, 1])),
        ValueError,
        "prompt and answer must fit the context of 6 tokens; got 7 in row 1; shorten the prompt or leave",
    ),
    "preferences: rankings": (
        lambda: align.with_reference(LM, None, Rankings(*[None] * 4)),
        ValueError,
        "rows must be Comparisons or Ratings; got Rankings; make pairs of rankings",
    ),
    "KTO: scores instead of labels": (
        lambda: rate([0.5, 7.0]),
        ValueError,
        "labels must lie from 0, bad, to 1, good; got 0.5 to 7; choose from which score on",
    ),
    "KTO: labels that are no numbers": (
        lambda: rate([0.5, np.nan]),
        ValueError,
        "labels must lie from 0, bad, to 1, good; got nan to nan",
    ),
    "KTO: one rating": (
        lambda: rate([1.0], 1),
        ValueError,
        "ratings must be at least two, for each is read with another's completion; got 1",
    ),
    "DPO: no reference": (
        lambda: use(align.dpo_objective, PAIRS),
        ValueError,
        "must hold the reference's log-probabilities; got Comparisons alone; sample from with_reference",
    ),
    "KTO: no reference": (
        lambda: use(align.kto_objective, Ratings(*GOOD.values())),
        ValueError,
        "must hold the reference's log-probabilities; got Ratings alone; sample from with_reference",
    ),
    "DPO: ratings with a reference": (
        lambda: use(align.dpo_objective, align.Referenced(Ratings(*GOOD.values()), jnp.zeros((2, 2)))),
        ValueError,
        "a batch of this objective must be Comparisons; got Ratings; each kind of feedback",
    ),
    "KTO: pairs with a reference": (
        lambda: use(align.kto_objective, align.Referenced(PAIRS, jnp.zeros((2, 2)))),
        ValueError,
        "a batch of this objective must be Ratings; got Comparisons; each kind of feedback",
    ),
    "IPO: ratings": (
        lambda: use(align.ipo_objective, Ratings(*GOOD.values())),
        ValueError,
        "a batch of this objective must be Comparisons; got Ratings; each kind of feedback",
    ),
    "SimPO: doubts": (
        lambda: use(align.simpo_objective, PAIRS._replace(flip_chance=jnp.zeros(2))),
        ValueError,
        "flip_chance must be None for this objective; got one for each row; leave it out, or take dpo",
    ),
}
