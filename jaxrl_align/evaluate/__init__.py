"""Evaluation of trained models: the likelihood of texts, scores of judged pairs, n-gram models to compare."""

from jaxrl_align.evaluate.judged_pairs import PairReport, report_pairs
from jaxrl_align.evaluate.likelihood import encode_texts, make_scorer, rank_of, share_preferred, text_log_prob
from jaxrl_align.evaluate.ngrams import NGrams, count_ngrams, ngram_log_probs

# fmt: off
__all__ = [
    "NGrams", "PairReport", "count_ngrams", "encode_texts", "make_scorer", "ngram_log_probs", "rank_of",
    "report_pairs", "share_preferred", "text_log_prob",
]
# fmt: on
