"""Evaluation of trained models: likelihoods, tasks' metrics, calibration, judged pairs, n-gram models to compare."""

from jaxrl_align.evaluate.calibration import (
    Platt,
    SelectiveAccuracy,
    brier_score,
    calibration_bins,
    expected_calibration_error,
    fit_platt,
    option_probs,
    selective_accuracy,
)
from jaxrl_align.evaluate.judged_pairs import PairReport, report_pairs
from jaxrl_align.evaluate.likelihood import encode_texts, make_scorer, rank_of, share_preferred, text_log_prob
from jaxrl_align.evaluate.ngrams import NGrams, count_ngrams, ngram_log_probs
from jaxrl_align.evaluate.task_metrics import (
    GROUPED,
    METRICS,
    Measure,
    accuracy,
    benchmark_score,
    binary_f1,
    corpus_bits_per_byte,
    corpus_perplexity,
    group_exact_match,
    macro_f1,
    matthews,
    pearson,
    right_answers,
    spearman,
)
from jaxrl_align.evaluate.text_overlap import (
    Overlap,
    exact_match,
    normalise_answer,
    normalised_match,
    rouge_l,
    rouge_n,
    token_f1,
)

# fmt: off
__all__ = [
    "GROUPED", "METRICS", "Measure", "NGrams", "Overlap", "PairReport", "Platt", "SelectiveAccuracy", "accuracy",
    "benchmark_score", "binary_f1", "brier_score", "calibration_bins", "corpus_bits_per_byte",
    "corpus_perplexity", "count_ngrams", "encode_texts", "exact_match", "expected_calibration_error", "fit_platt",
    "group_exact_match", "macro_f1", "make_scorer", "matthews", "ngram_log_probs", "normalise_answer",
    "normalised_match", "option_probs", "pearson", "rank_of", "report_pairs", "right_answers", "rouge_l",
    "rouge_n", "selective_accuracy", "share_preferred", "spearman", "text_log_prob", "token_f1",
]
# fmt: on
