"""Evaluation of trained models: likelihoods of texts and options, judged pairs, n-grams to compare with."""

from jaxrl_align.evaluate.choices import (
    Choices,
    OptionScores,
    adjust_scores,
    choose_option,
    encode_choices,
    encode_pairs,
    make_option_scorer,
    share_prefix,
)
from jaxrl_align.evaluate.judged_pairs import PairReport, report_pairs
from jaxrl_align.evaluate.likelihood import encode_texts, make_scorer, rank_of, share_preferred, text_log_prob
from jaxrl_align.evaluate.ngrams import NGrams, count_ngrams, ngram_log_probs
from jaxrl_align.evaluate.stop_strings import cut_at, make_text_writer

# fmt: off
__all__ = [
    "Choices", "NGrams", "OptionScores", "PairReport", "adjust_scores", "choose_option", "count_ngrams",
    "cut_at", "encode_choices", "encode_pairs", "encode_texts", "make_option_scorer", "make_scorer",
    "make_text_writer", "ngram_log_probs", "rank_of", "report_pairs", "share_preferred", "share_prefix",
    "text_log_prob",
]
# fmt: on
