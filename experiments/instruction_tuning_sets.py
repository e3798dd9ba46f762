"""The data of `instruction_tuning.py`: T0's mixture, its sets and families, and which of them are asked.

A file of the archive is one template of one data set, rows `{"prompt", "completion"}`. A set is the unit of
breadth: a template's name begins with that of its set.
"""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxrl_align.data.files import DATA_VARIABLE, find_own_file

ARCHIVE = "instruction/t0_50k/data_per_template.tar.xz"
SOURCE = "data/finetuning/t0_train_50k/data_per_template of github.com/yizhongw/self-instruct"
LARGEST_FILE, LARGEST_ARCHIVE = 5_000_000, 200_000_000
"""Bytes, unpacked; the archive holds 63e6, its largest file 1.4e6."""
END = "<|endoftext|>"

FAMILIES: dict[str, tuple[str, ...]] = {
    "sentiment": ("amazon_polarity", "app_reviews", "imdb", "rotten_tomatoes", "yelp_review_full"),
    "paraphrase": ("glue_mrpc", "glue_qqp", "paws_labeled_final"),
    "topic": ("ag_news", "dbpedia_14", "trec"),
    "choice": (
        *("commonsense_qa", "cosmos_qa", "dream", "qasc", "quarel", "quartz", "sciq", "social_i_qa"),
        *("wiki_hop_original", "wiqa"),
    ),
    "extraction": (
        *("adversarial_qa_dbert", "adversarial_qa_dbidaf", "adversarial_qa_droberta"),
        *("duorc_ParaphraseRC", "duorc_SelfRC", "quoref", "ropes"),
    ),
    "closed book": ("kilt_tasks_hotpotqa", "wiki_qa"),
    "summary": ("cnn_dailymail_3_0_0", "gigaword", "multi_news", "samsum", "xsum"),
    "text from data": ("common_gen", "wiki_bio"),
}
"""The 37 sets by the families of T0 (Sanh et al. 2022, arXiv:2110.08207, figure 2)."""
SETS = tuple(name for names in FAMILIES.values() for name in names)
UNSEEN_FAMILIES = ("sentiment", "paraphrase", "topic")
"""No set of them is learnt from."""
HELD_OUT = ("qasc", "quartz", "social_i_qa", "samsum")
"""Sets that are not learnt from, while others of their families are."""
UNLEARNT = frozenset(HELD_OUT).union(*(FAMILIES[name] for name in UNSEEN_FAMILIES))

TOO_LONG = ("adversarial_qa_dbert", "multi_news", "quoref", "wiki_hop_original")
"""Sets of which no more than a few rows fit 128 tokens."""
POOL = tuple(name for name in SETS if name not in UNLEARNT.union(TOO_LONG))
"""The 18 sets that are learnt from where whole families are held out."""
NO_ROW = ("trec", "quoref", "wiki_hop_original")
"""Sets without one row of 128 tokens and a completion."""
WIDE_POOL = tuple(name for name in SETS if name not in (*HELD_OUT, *NO_ROW))
"""The 30 sets that are learnt from where single sets are held out."""
POOLS = {"families": POOL, "sets": WIDE_POOL}

YES_NO, SMALL_YES_NO, SIGN = ("Yes", "No"), ("yes", "no"), ("Positive", "Negative")
FIVE = tuple("12345")
TESTS: dict[str, dict[str, tuple[str, ...] | str]] = {
    "amazon_polarity": {
        "Is_this_product_review_positive": YES_NO,
        "Is_this_review": SIGN,
        "Is_this_review_negative": YES_NO,
        "User_recommend_this_product": YES_NO,
        "convey_negative_or_positive_sentiment": SIGN,
        "flattering_or_not": ("flattering", "unflattering"),
        "negative_or_positive_tone": SIGN,
        "user_satisfied": ("satisfied", "dissatisfied"),
        "would_you_buy": ("increase", "decrease"),
    },
    "app_reviews": {
        "categorize_rating_using_review": ("Not at all", "No", "Maybe", "Yes", "Definitely"),
        "convert_to_rating": FIVE,
        "convert_to_star_rating": tuple("★" * stars for stars in range(1, 6)),
    },
    "yelp_review_full": {"format_score": FIVE, "on_a_scale": FIVE},
    "glue_mrpc": {
        "equivalent": ("equivalent", "not equivalent"),
        **dict.fromkeys(("paraphrase", "replace", "same_thing", "want_to_know"), SMALL_YES_NO),
    },
    "glue_qqp": {
        "duplicate_or_not": ("duplicates", "not duplicates"),
        "meaning": YES_NO,
        **dict.fromkeys(("answer", "duplicate", "quora", "same_thing"), SMALL_YES_NO),
    },
    "paws_labeled_final": {
        "PAWS_ANLI_GPT3": ("True", "False"),
        **dict.fromkeys(("Concatenation", "Concatenation_no_label", "Meaning", "Meaning_no_label"), YES_NO),
        **dict.fromkeys(("Rewrite", "Rewrite_no_label"), YES_NO),
        **dict.fromkeys(("context_question", "context_question_no_label"), YES_NO),
    },
    "ag_news": {
        **dict.fromkeys(
            ("classify_with_choices", "classify_with_choices_question_first"),
            ("World politics", "Sports", "Business", "Science and technology"),
        ),
        "recommend": ("Politician", "Athlete", "Business executive", "Scientist"),
        "which_section_choices": ("World News", "Sports", "Business", "Science and Technology"),
    },
    "qasc": {
        **dict.fromkeys(("is_correct_1", "is_correct_2"), YES_NO),
        **dict.fromkeys(("qa_with_combined_facts_1", "qa_with_separated_facts_1"), "dashes"),
        **dict.fromkeys(("qa_with_separated_facts_2", "qa_with_separated_facts_4"), "dashes"),
    },
    "quartz": dict.fromkeys(("having_read_above_passage", "read_passage_below_choose"), "brackets"),
    "social_i_qa": {
        "Check_if_a_random_answer_is_valid_or_not": YES_NO,
        "Show_choices_and_generate_answer": "commas",
        "Show_choices_and_generate_index": ("A", "B", "C"),
    },
}
"""Set -> template -> the answers it allows, or where a prompt names its own (`READERS`).

Only templates whose prompt says what may be answered, or asks yes or no. rotten_tomatoes, imdb and dbpedia_14
are not asked: their rows are of one label alone."""


class Row(NamedTuple):
    """One instruction and its output."""

    set: str
    template: str
    """Without the set's name."""
    prompt: str
    completion: str
    place: int
    """Within its template's file, from 0."""


def split_name(template: str) -> tuple[str, str]:
    """Return the set and the rest of a template's name, the longest set's that it begins with.

    Raises:
      ValueError: if there is none.
    """
    found = max((name for name in SETS if template.startswith(name + "_")), key=len, default="")
    if not found:
        raise ValueError(f"{template} must begin with the name of a set of FAMILIES; add its set there")
    return found, template[len(found) + 1 :]


def find_archive() -> Path:
    """Return the path of T0's mixture.

    Raises:
      FileNotFoundError: the user's data folder does not hold it.
    """
    if (path := find_own_file(ARCHIVE)) is None:
        raise FileNotFoundError(
            f"{ARCHIVE} is not in ${DATA_VARIABLE}; pack the folder {SOURCE} as that file, tar -cJf"
        )
    return path


def read_mixture(path: Path) -> list[Row]:
    """Return the rows of an archive of templates, but those whose completion is empty (all of trec's).

    Raises:
      ValueError: for a file of another kind or size, or a row without prompt and completion; it names it.
    """
    rows, total = [], 0
    with tarfile.open(path, "r:xz") as archive:
        for member in archive:
            if not member.isfile() or not member.name.endswith(".jsonl"):
                continue
            total += member.size
            if member.size > LARGEST_FILE or total > LARGEST_ARCHIVE:
                raise ValueError(
                    f"{path} must hold files of at most {LARGEST_FILE} bytes, {LARGEST_ARCHIVE} in all; got "
                    f"{member.name} of {member.size}, {total} so far"
                )
            file = archive.extractfile(member)
            lines = [] if file is None else file.read().decode("utf-8").splitlines()
            rows += _read_template(Path(member.name).stem, lines)
    if not rows:
        raise ValueError(f"{path} must hold templates as .jsonl files; got none")
    return rows


def _read_template(name: str, lines: Sequence[str]) -> list[Row]:
    own, template = split_name(name)
    rows = []
    for place, line in enumerate(lines):
        try:
            fields = json.loads(line)
            prompt, completion = fields["prompt"], fields["completion"].removesuffix(END).strip()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{name}.jsonl:{place + 1}: must have prompt and completion ({error})"
            ) from error
        if completion:
            rows.append(Row(own, template, prompt, completion, place))
    return rows


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("instruction_tuning")
