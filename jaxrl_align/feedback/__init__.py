"""What humans said of answers: rows of six kinds, their tokens, simulated annotators, consensus."""

from jaxrl_align.feedback.annotators import (
    Annotator,
    PlainProse,
    compare,
)
from jaxrl_align.feedback.arguments import load_convincing_arguments, read_arguments
from jaxrl_align.feedback.consensus import (
    Consensus,
    Votes,
    dawid_skene,
    log_odds,
    majority,
    read_votes,
    soft_labels,
)
from jaxrl_align.feedback.crowd import (
    Asking,
    Crowd,
)
from jaxrl_align.feedback.encoding import (
    choose_fitting,
    encode_comparisons,
    encode_rankings,
    encode_ratings,
)
from jaxrl_align.feedback.judgements import (
    TIE,
    Judgements,
    as_rows,
    standardise_ratings,
)
from jaxrl_align.feedback.rows import (
    Comment,
    Comparison,
    Correction,
    Feedback,
    Label,
    Ranking,
    Rating,
    compare_correction,
    read_feedback,
)
from jaxrl_align.feedback.sentiment import (
    fit_sentiment,
    rate_comments,
)

# fmt: off
__all__ = [
    "Annotator", "Asking", "Comment", "Comparison", "Consensus", "Correction", "Crowd", "Feedback",
    "Judgements", "Label", "PlainProse", "Ranking", "Rating", "TIE", "Votes", "as_rows",
    "choose_fitting", "compare", "compare_correction", "dawid_skene", "encode_comparisons",
    "encode_rankings", "encode_ratings", "fit_sentiment", "load_convincing_arguments", "log_odds",
    "majority", "rate_comments", "read_arguments", "read_feedback", "read_votes", "soft_labels",
    "standardise_ratings",
]
# fmt: on
