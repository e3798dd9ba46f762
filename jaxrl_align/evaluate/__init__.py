"""Evaluation of trained models: the likelihood of texts, scores of judged pairs, n-gram models to compare."""

from jaxrl_align.evaluate.judged_pairs import PairReport, report_pairs
from jaxrl_align.evaluate.likelihood import encode_texts, make_scorer, rank_of, share_preferred, text_log_prob
from jaxrl_align.evaluate.ngrams import NGrams, count_ngrams, ngram_log_probs
from jaxrl_align.evaluate.task_format import Task, find_tasks, load_task, shipped_tasks
from jaxrl_align.evaluate.tasks import Item, extract_answer, read_items

# fmt: off
__all__ = [
    "Item", "NGrams", "PairReport", "Task", "count_ngrams", "encode_texts", "extract_answer", "find_tasks",
    "load_task", "make_scorer", "ngram_log_probs", "rank_of", "read_items", "report_pairs",
    "share_preferred", "shipped_tasks", "text_log_prob",
]
# fmt: on
