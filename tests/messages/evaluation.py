"""Bad items, rules, task files, examples, metrics and requests of evaluation."""

import tempfile
from pathlib import Path

import numpy as np

from jaxrl_align import data, evaluate, nets
from jaxrl_align.evaluate.scoring.text_requests import TextScorer

LM = nets.make_transformer(nets.TransformerConfig(260, width=8, layers=1, heads=1, context=8))
BYTES = data.byte_tokenizer()
SCORES = evaluate.OptionScores(np.array([-1.0, -2.0]), np.zeros(2, bool))
ASKED, SHOWN = (evaluate.Item({}, "Is it?", ("no", "yes"), 1, f"rows.tsv:{i}", None) for i in (3, 8))


def score(context, *options):
    """Score one item; what is wrong with it comes before the parameters are read."""
    return evaluate.make_option_scorer(LM)({}, [evaluate.Choices(context, options)])


def load(text):
    """Load a task file of this text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "my.toml"
        path.write_text(text)
        return evaluate.load_task(path)


def adjust(rule, options=("no", "yes")):
    return evaluate.adjust_scores(SCORES, options, rule)


def write(**settings):
    return TextScorer(LM, {}, BYTES, (1,)).write([("Q", settings)])


ROWS = {
    "options alike": (
        lambda: evaluate.encode_choices(BYTES, "Is it?", [" no", " no"]),
        "options must differ; got ' no' and ' no', the same tokens; remove one",
    ),
    "an empty option": (
        lambda: evaluate.encode_choices(BYTES, "Is it?", [" no", ""]),
        "every option must have a token; got ''; write it out",
    ),
    "an item too long": (
        lambda: score((2,) * 7, (3,), (4, 5, 6)),
        "item 0 must fit the context of 8 tokens; got 9; shorten it, or leave examples out",
    ),
    "an option beyond the vocabulary": (
        lambda: score((2,), (3,), (260,)),
        "tokens of items must be from 0 to 259; got .*260; was another tokenizer used",
    ),
    "another rule": (lambda: adjust("length"), "rule must be one of raw, .*, calibrated; got 'length'"),
    "no baseline": (lambda: adjust("calibrated"), "rule 'calibrated' takes a baseline; score it beforehand"),
    "an empty stop string": (
        lambda: evaluate.make_text_writer(
            LM, BYTES, response_length=2, stop_tokens=(1,), stop_strings=["\n", ""]
        ),
        r"stop_strings must be a list of texts, none empty; got \['\\n', ''\]",
    ),
    "a setting of requests": (
        lambda: write(num_beams=4),
        r"settings of writing must be known; got \['num_beams'\]; leave them out",
    ),
    "no room for a prompt": (
        lambda: write(max_gen_toks=8),
        "max_gen_toks must be 1 to 7, so that a prompt fits beside it; got 8",
    ),
    "a task of no name": (
        lambda: evaluate.load_task("sst"),
        r"sst is no task of the package; did you mean .*\?",
    ),
    "an unknown key of a task": (
        lambda: load('name = "mine"\ntemplat = "{text}"'),
        r"my\.toml:2: unknown key 'templat'; did you mean template\?",
    ),
    "an example that is asked": (
        lambda: evaluate.check_examples([SHOWN], [ASKED]),
        "rows.tsv:8: an example must be no test item; its input is that of rows.tsv:3; remove it",
    ),
    "too few examples": (
        lambda: evaluate.draw_examples([SHOWN], [ASKED], 1, seed=0),
        r"drawn from rows that are no test items; got 0 of 1; ask for fewer, or name another file under \[",
    ),
    "another metric": (
        lambda: evaluate.measure("precision", [0], [1]),
        "a metric must be one of accuracy, .*; got 'precision'",
    ),
    "no groups": (
        lambda: evaluate.measure("group_exact_match", [0], [1]),
        "group_exact_match needs the items' groups; name them in the task file, `group`",
    ),
}
KINDS = {"a task of no name": FileNotFoundError}
CASES = {
    f"evaluation: {name}": (call, KINDS.get(name, ValueError), says) for name, (call, says) in ROWS.items()
}
