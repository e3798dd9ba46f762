"""Evaluation of trained models: tasks and their metrics, likelihoods of texts and options, judged pairs; and
policies of environments in folders."""

from jaxrl_align.evaluate.ask_items import AskedItems, Asker, ItemResult
from jaxrl_align.evaluate.helm import Answers, Figure, HelmReport, report
from jaxrl_align.evaluate.judged_pairs import PairReport, report_pairs
from jaxrl_align.evaluate.measures.calibration import (
    Platt,
    SelectiveAccuracy,
    brier_score,
    calibration_bins,
    expected_calibration_error,
    fit_platt,
    option_probs,
    selective_accuracy,
)
from jaxrl_align.evaluate.measures.item_metrics import Measured, measure, score_items
from jaxrl_align.evaluate.measures.perturbations import FAIRNESS, ROBUSTNESS
from jaxrl_align.evaluate.measures.task_metrics import (
    GROUPED,
    METRICS,
    MetricValue,
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
from jaxrl_align.evaluate.measures.text_overlap import (
    Overlap,
    exact_match,
    normalise_answer,
    normalised_match,
    rouge_l,
    rouge_n,
    token_f1,
)
from jaxrl_align.evaluate.measures.wording import (
    ToxicTexts,
    count_together,
    count_words,
    find_toxic,
    mean_unevenness,
    unevenness,
)
from jaxrl_align.evaluate.policies.films import film_policy
from jaxrl_align.evaluate.policies.playing import keep_policy, play_policy
from jaxrl_align.evaluate.policies.policy_folder import KeptPolicy, load_policy, save_policy
from jaxrl_align.evaluate.run_task import TaskResult, run_task
from jaxrl_align.evaluate.scoring.choices import (
    Choices,
    OptionScores,
    encode_choices,
    encode_pairs,
    make_option_scorer,
    share_prefix,
)
from jaxrl_align.evaluate.scoring.likelihood import (
    encode_texts,
    make_scorer,
    rank_of,
    share_preferred,
    text_log_prob,
)
from jaxrl_align.evaluate.scoring.ngrams import NGrams, count_ngrams, ngram_log_probs
from jaxrl_align.evaluate.scoring.option_rules import adjust_scores, choose_option
from jaxrl_align.evaluate.scoring.stop_strings import cut_at, make_text_writer
from jaxrl_align.evaluate.task_report import report_task
from jaxrl_align.evaluate.tasks.shots import (
    DrawnExamples,
    Prompt,
    Prompts,
    TaggedPrompt,
    check_examples,
    draw_examples,
    few_shot_prompt,
    make_prompts,
    plain_prompt,
    user_based_prompt,
)
from jaxrl_align.evaluate.tasks.task_format import Task, find_tasks, load_task, shipped_tasks
from jaxrl_align.evaluate.tasks.task_items import Item, extract_answer, read_items

# fmt: off
__all__ = [
    "Answers", "AskedItems", "Asker", "Choices", "DrawnExamples", "FAIRNESS", "Figure", "GROUPED",
    "HelmReport", "Item", "ItemResult", "KeptPolicy", "METRICS", "Measured", "MetricValue", "NGrams",
    "OptionScores", "Overlap", "PairReport", "Platt", "Prompt", "Prompts", "ROBUSTNESS",
    "SelectiveAccuracy", "TaggedPrompt", "Task", "TaskResult", "ToxicTexts", "accuracy",
    "adjust_scores", "benchmark_score", "binary_f1", "brier_score", "calibration_bins",
    "check_examples", "choose_option", "corpus_bits_per_byte", "corpus_perplexity", "count_ngrams",
    "count_together", "count_words", "cut_at", "draw_examples", "encode_choices", "encode_pairs",
    "encode_texts", "exact_match", "expected_calibration_error", "extract_answer", "few_shot_prompt",
    "film_policy", "find_tasks", "find_toxic", "fit_platt", "group_exact_match", "keep_policy",
    "load_policy", "load_task", "macro_f1", "make_option_scorer", "make_prompts", "make_scorer",
    "make_text_writer", "matthews", "mean_unevenness", "measure", "ngram_log_probs", "normalise_answer",
    "normalised_match", "option_probs", "pearson", "plain_prompt", "play_policy", "rank_of",
    "read_items", "report", "report_pairs", "report_task", "right_answers", "rouge_l", "rouge_n",
    "run_task", "save_policy", "score_items", "selective_accuracy", "share_preferred", "share_prefix",
    "shipped_tasks", "spearman", "text_log_prob", "token_f1", "unevenness", "user_based_prompt",
]
# fmt: on
