"""Bad annotators, questions to a crowd, votes and remarks."""

import numpy as np

from jaxrl_align import feedback

PAIRS = np.zeros((3, 2))
VOTES = feedback.Votes(*np.zeros((3, 2), int))


def crowd(*annotators):
    return feedback.Crowd(annotators or [feedback.Annotator()] * 3, np.random.default_rng(0))


def ask(method, *arguments, annotators=(), **asking):
    """Return a call of a crowd's method."""
    return lambda: getattr(crowd(*annotators), method)(*arguments, **asking)


def rows(kind, prompts, answers):
    return lambda: feedback.as_rows(kind, VOTES, prompts, answers)


TRAITS = {
    "noise": (-0.1, "noise must be a number, at least 0; got -0.1; the default is no fault"),
    "tie_width": (float("nan"), "tie_width must be a number, at least 0; got nan"),
    "laziness": (1.1, r"laziness must be a number, in \[0, 1\]; got 1.1"),
    "malice": (-0.2, r"malice must be a number, in \[0, 1\]; got -0.2"),
    "offset": (float("inf"), "offset must be a number, finite; got inf"),
    "position_bias": (float("nan"), "position_bias must be a number, finite; got nan"),
    "length_bias": (float("nan"), "length_bias must be a number, finite; got nan"),
    "scale": (0.0, "scale must be above 0; got 0.0; malice=1 reverses every judgement"),
    "habit": ("last", "habit must be uniform or first; got 'last'; laziness says how often"),
}
FAN = [feedback.Annotator(), feedback.Annotator(target="popularity")]
BIASED = [feedback.Annotator(), feedback.Annotator(length_bias=0.1)]
NAN = np.where([[0, 0], [0, 1], [0, 0]], np.nan, 0.0)
CASES = {
    f"annotators: {name} {value}": (lambda n=name, v=value: feedback.Annotator(**{n: v}), ValueError, says)
    for name, (value, says) in TRAITS.items()
} | {
    "crowd: nobody": (
        lambda: feedback.Crowd([], np.random.default_rng(0)),
        ValueError,
        r"annotators must be at least one; got none; \[Annotator\(\)\] never errs",
    ),
    "crowd: a number for an annotator": (
        lambda: crowd(feedback.Annotator(), 0.5),
        ValueError,
        "annotators must be Annotator each; got float at 1",
    ),
    "crowd: more votes than annotators": (
        ask("compare", PAIRS, votes=4),
        ValueError,
        "votes must be from 1 to the number of annotators; got votes=4, 3 annotators",
    ),
    "crowd: no votes": (ask("rate", [1.0], votes=0), ValueError, "votes must be from 1 .*; got votes=0"),
    "crowd: an unknown annotator": (
        ask("label", [1.0, 2.0], who=[[0], [3]]),
        ValueError,
        r"who must be annotators from 0 to 2; got \[3\]",
    ),
    "crowd: a negative annotator": (ask("label", [1.0], who=[[-1]]), ValueError, r"to 2; got \[-1\]"),
    "crowd: who without an axis": (
        ask("rank", PAIRS, who=[0, 1, 2]),
        ValueError,
        r"who must be integers \[3, votes\], one row an item; got int64 \(3,\)",
    ),
    "crowd: who for other items": (ask("rank", PAIRS, who=[[0]]), ValueError, r"who must .* \(1, 1\)"),
    "crowd: who by share": (ask("label", [1.0], who=[[0.5]]), ValueError, "who must .*; got float64"),
    "crowd: nan gold": (
        ask("compare", NAN),
        ValueError,
        "gold must be finite; got nan for item 1; leave that item out",
    ),
    "crowd: infinite gold": (
        ask("rate", [0.0, np.inf]),
        ValueError,
        "gold must be finite; got inf for item 1",
    ),
    "crowd: three in a comparison": (
        ask("compare", np.zeros((3, 3))),
        ValueError,
        r"gold must be \[N, 2\] with N >= 1; got \(3, 3\); np.stack",
    ),
    "crowd: a ranking of one": (ask("rank", np.zeros((3, 1))), ValueError, r"gold must be \[N, K >= 2\]"),
    "crowd: a correction without others": (ask("correct", [1.0]), ValueError, r"gold must be \[N, K >= 2\]"),
    "crowd: pairs to rate": (ask("rate", PAIRS), ValueError, r"gold must be \[N\] .*; got \(3, 2\)"),
    "crowd: no items": (ask("compare", np.zeros((0, 2))), ValueError, r"with N >= 1; got \(0, 2\)"),
    "crowd: lengths missing": (
        ask("compare", PAIRS, annotators=BIASED),
        ValueError,
        r"lengths must be given as annotators have a length_bias; got none, biased are \[1\]",
    ),
    "crowd: lengths of others": (
        ask("compare", PAIRS, lengths=np.zeros((2, 3))),
        ValueError,
        r"lengths must have gold's shape \(3, 2\); got \(2, 3\)",
    ),
    "crowd: nan lengths": (ask("compare", PAIRS, lengths=NAN), ValueError, "lengths must be finite; got nan"),
    "crowd: the clique's reward missing": (
        ask("rank", PAIRS, annotators=FAN, others={"fame": PAIRS}),
        ValueError,
        "others must hold the rewards that annotators judge by; got none for popularity",
    ),
    "crowd: the clique's reward is nan": (
        ask("rank", PAIRS, annotators=FAN, others={"popularity": NAN}),
        ValueError,
        r"others\['popularity'\] must be finite; got nan for item 1",
    ),
    "crowd: a scale upside down": (
        ask("rate", [1.0], low=10, high=1),
        ValueError,
        "low and high must be whole, 0 <= low < high; got 10, 1; try 1, 10",
    ),
    "crowd: a scale of one point": (ask("rate", [1.0], low=3, high=3), ValueError, "low < high; got 3, 3"),
    "crowd: half a point": (ask("comment", [1.0], low=0.5), ValueError, "must be whole.*; got 0.5, 10"),
    "crowd: below zero": (ask("rate", [1.0], low=-3, high=3), ValueError, "0 <= low < high; got -3, 3"),
    "crowd: a nan threshold": (
        ask("label", [1.0], float("nan")),
        ValueError,
        r"threshold must be finite; got nan; np.median\(gold\) halves the answers",
    ),
    "crowd rows: another kind": (
        rows("rating", ["p"], ["a"]),
        ValueError,
        "kind must be one of Comparison, Ranking, Rating, Comment, Correction, Label; got 'rating'",
    ),
    "crowd rows: no prompt": (
        rows(feedback.Rating, [], []),
        ValueError,
        "prompts and answers must be one for each of 1 items; got 0, 0",
    ),
    "crowd rows: a prompt too many": (rows(feedback.Rating, ["p", "q"], ["a"]), ValueError, "got 2, 1"),
    "votes: too few weights": (
        lambda: feedback.soft_labels(VOTES._replace(annotator=np.array([0, 1])), [1.0]),
        ValueError,
        r"weights must be 2 finite numbers or more, one an annotator; got \(1,\)",
    ),
    "votes: nan weights": (lambda: feedback.soft_labels(VOTES, [np.nan]), ValueError, "must be 1 finite"),
    "votes: one class": (
        lambda: feedback.dawid_skene(VOTES, classes=1),
        ValueError,
        "classes must be at least 2; got 1; leave it out where there are no ties",
    ),
    "remarks: one class": (
        lambda: feedback.fit_sentiment(["a", "b"], [1, 1]),
        ValueError,
        r"labels must be 0 or 1, one a text, and have both; got 2 texts, 2 labels, values \[1\]",
    ),
    "remarks: labels from -1": (
        lambda: feedback.fit_sentiment("ab", [1, -1]),
        ValueError,
        r"values \[-1, 1\]",
    ),
    "remarks: a label too few": (lambda: feedback.fit_sentiment("abc", [1, 0]), ValueError, "3 texts, 2 lab"),
    "remarks: no smoothing": (
        lambda: feedback.fit_sentiment("ab", [1, 0], smoothing=0.0),
        ValueError,
        "smoothing must be above 0; got 0.0; 1 is Laplace's",
    ),
    "remarks: a scorer of nan": (
        lambda: feedback.rate_comments(
            [feedback.Comment("p", "c", "nice", source="rows.jsonl:7")], lambda text: float("nan")
        ),
        ValueError,
        "rows.jsonl:7: scorer must return a finite number; got nan for 'nice'",
    ),
    "ratings: a score of nan": (
        lambda: feedback.standardise_ratings(
            [feedback.Rating("p", "c", float("nan"), source="rows.jsonl:7")]
        ),
        ValueError,
        "rows.jsonl:7: score must be a finite number; got nan; remove the row",
    ),
    "ratings: an infinite score": (
        lambda: feedback.standardise_ratings([feedback.Rating("p", "c", s) for s in (1.0, float("inf"))]),
        ValueError,
        r"rows\[1\]: score must be a finite number; got inf",
    ),
}
