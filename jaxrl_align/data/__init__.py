"""The host's side of data: files, images, corpora, tokenizers, chat templates, annotators."""

from jaxrl_align.data.annotators import PlainProse, compare
from jaxrl_align.data.blimp import Paradigm, load_blimp
from jaxrl_align.data.books import childrens_books, hold_out_first, passages, read_books
from jaxrl_align.data.chat import ChatTemplate
from jaxrl_align.data.consensus import Consensus, Votes, dawid_skene, log_odds, majority, read_votes
from jaxrl_align.data.corpora import paragraphs, python_topics, read_text, sentences, tiny_shakespeare
from jaxrl_align.data.feedback import (
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
from jaxrl_align.data.feedback_tokens import (
    choose_fitting,
    encode_answers,
    encode_comparisons,
    encode_rankings,
)
from jaxrl_align.data.files import DataFile, find_file
from jaxrl_align.data.images import (
    Images,
    Split,
    choose_labelled,
    load_digits,
    load_idx_folder,
    load_mnist,
    load_photo_patches,
    read_idx,
)
from jaxrl_align.data.labelled_texts import Labelled, LabelledSplits, load_sst2, load_trec, read_labelled
from jaxrl_align.data.mixtures import epochs_per_source, normalise_weights
from jaxrl_align.data.packing import Packed, pack
from jaxrl_align.data.probes import Cloze
from jaxrl_align.data.prompts import Demonstrations, cut_sentences
from jaxrl_align.data.streams import open_tokens, stream_rows, write_tokens
from jaxrl_align.data.tokenizers import (
    Tokenizer,
    byte_tokenizer,
    character_tokenizer,
    left_pad,
    load_tokenizer,
    right_pad,
    save_tokenizer,
    train_bpe,
)

# fmt: off
__all__ = [
    "ChatTemplate", "Cloze", "Comment", "Comparison", "Consensus", "Correction", "DataFile",
    "Demonstrations", "Feedback", "Images", "Label", "Labelled", "LabelledSplits", "Packed",
    "Paradigm", "PlainProse", "Ranking", "Rating", "Split", "Tokenizer", "Votes", "byte_tokenizer",
    "character_tokenizer", "childrens_books", "choose_fitting", "choose_labelled", "compare",
    "compare_correction", "cut_sentences", "dawid_skene", "encode_answers", "encode_comparisons",
    "encode_rankings", "epochs_per_source", "find_file", "hold_out_first", "left_pad", "load_blimp",
    "load_digits", "load_idx_folder", "load_mnist", "load_photo_patches", "load_sst2",
    "load_tokenizer", "load_trec", "log_odds", "majority", "normalise_weights", "open_tokens",
    "pack", "paragraphs", "passages", "python_topics", "read_books", "read_feedback", "read_idx",
    "read_labelled", "read_text", "read_votes", "right_pad", "save_tokenizer", "sentences",
    "stream_rows", "tiny_shakespeare", "train_bpe", "write_tokens",
]
# fmt: on
