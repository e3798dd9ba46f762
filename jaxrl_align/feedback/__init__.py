"""What humans said of answers: rows of six kinds, their tokens, simulated annotators, consensus."""

from jaxrl_align.feedback.annotators import (
    PlainProse,
    compare,
)
from jaxrl_align.feedback.consensus import (
    Consensus,
    Votes,
    dawid_skene,
    log_odds,
    majority,
    read_votes,
)
from jaxrl_align.feedback.encoding import (
    choose_fitting,
    encode_comparisons,
    encode_rankings,
    encode_ratings,
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

# fmt: off
__all__ = [
    "Comment", "Comparison", "Consensus", "Correction", "Feedback", "Label", "PlainProse",
    "Ranking", "Rating", "Votes", "choose_fitting", "compare", "compare_correction", "dawid_skene",
    "encode_comparisons", "encode_rankings", "encode_ratings", "log_odds", "majority",
    "read_feedback", "read_votes",
]
# fmt: on
