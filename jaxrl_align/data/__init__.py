"""The host's side of data: files, images, corpora, tokenizers, chat templates."""

from jaxrl_align.data.batches import HostBatches, shuffled_rows
from jaxrl_align.data.blimp import Paradigm, load_blimp
from jaxrl_align.data.books import childrens_books, hold_out_first, passages, read_books
from jaxrl_align.data.corpora import paragraphs, python_topics, read_text, sentences, tiny_shakespeare
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
from jaxrl_align.data.json_lines import JsonLines, open_jsonl, stream_jsonl
from jaxrl_align.data.labelled_texts import Labelled, LabelledSplits, load_sst2, load_trec, read_labelled
from jaxrl_align.data.mixtures import epochs_per_source, normalise_weights
from jaxrl_align.data.probes import Cloze
from jaxrl_align.data.prompts import Demonstrations, cut_sentences
from jaxrl_align.data.tokens.chat import ChatTemplate
from jaxrl_align.data.tokens.packing import Packed, pack
from jaxrl_align.data.tokens.padding import left_pad, right_pad
from jaxrl_align.data.tokens.streams import open_tokens, stream_rows, write_tokens
from jaxrl_align.data.tokens.tokenizer_files import load_tokenizer, save_tokenizer
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.data.tokens.vocabularies import byte_tokenizer, character_tokenizer, train_bpe

# fmt: off
__all__ = [
    "ChatTemplate", "Cloze", "DataFile", "Demonstrations", "HostBatches", "Images", "JsonLines",
    "Labelled", "LabelledSplits", "Packed", "Paradigm", "Split", "Tokenizer", "byte_tokenizer",
    "character_tokenizer", "childrens_books", "choose_labelled", "cut_sentences",
    "epochs_per_source", "find_file", "hold_out_first", "left_pad", "load_blimp", "load_digits",
    "load_idx_folder", "load_mnist", "load_photo_patches", "load_sst2", "load_tokenizer",
    "load_trec", "normalise_weights", "open_jsonl", "open_tokens", "pack", "paragraphs", "passages",
    "python_topics", "read_books", "read_idx", "read_labelled", "read_text", "right_pad",
    "save_tokenizer", "sentences", "shuffled_rows", "stream_jsonl", "stream_rows",
    "tiny_shakespeare", "train_bpe", "write_tokens",
]
# fmt: on
