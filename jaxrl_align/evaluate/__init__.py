"""Evaluation of trained models: tasks, likelihoods of texts and options, judged pairs, n-gram models."""

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
from jaxrl_align.evaluate.shots import (
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
from jaxrl_align.evaluate.stop_strings import cut_at, make_text_writer
from jaxrl_align.evaluate.task_format import Task, find_tasks, load_task, shipped_tasks
from jaxrl_align.evaluate.tasks import Item, extract_answer, read_items

# fmt: off
__all__ = [
    "Choices", "DrawnExamples", "Item", "NGrams", "OptionScores", "PairReport", "Prompt", "Prompts",
    "TaggedPrompt", "Task", "adjust_scores", "check_examples", "choose_option", "count_ngrams",
    "cut_at", "draw_examples", "encode_choices", "encode_pairs", "encode_texts", "extract_answer",
    "few_shot_prompt", "find_tasks", "load_task", "make_option_scorer", "make_prompts", "make_scorer",
    "make_text_writer", "ngram_log_probs", "plain_prompt", "rank_of", "read_items", "report_pairs",
    "share_preferred", "share_prefix", "shipped_tasks", "text_log_prob", "user_based_prompt",
]
# fmt: on
