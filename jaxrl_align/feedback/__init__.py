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
from jaxrl_align.feedback.demonstrations import (
    Demonstration,
    Dialogue,
    Document,
    Question,
    pad_demonstrations,
    pad_prompts,
    read_demonstrations,
    read_prompts,
    tokenise_demonstrations,
    tokenise_prompts,
)
from jaxrl_align.feedback.encoding import (
    choose_fitting,
    encode_comparisons,
    encode_rankings,
    encode_ratings,
    measure_rows,
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
    "Annotator", "Asking", "Comment", "Comparison", "Consensus", "Correction", "Crowd",
    "Demonstration", "Dialogue", "Document", "Feedback", "Judgements", "Label", "PlainProse",
    "Question", "Ranking", "Rating", "TIE", "Votes", "as_rows", "choose_fitting", "compare",
    "compare_correction", "dawid_skene", "encode_comparisons", "encode_rankings", "encode_ratings",
    "fit_sentiment", "load_convincing_arguments", "log_odds", "majority", "measure_rows",
    "pad_demonstrations", "pad_prompts", "rate_comments", "read_arguments", "read_demonstrations",
    "read_feedback", "read_prompts", "read_votes", "soft_labels", "standardise_ratings",
    "tokenise_demonstrations", "tokenise_prompts",
]
# fmt: on
