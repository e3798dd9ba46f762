"""Write what trl's trainers answer for one batch into a fixture: losses and metrics of a tiny GPT-2.

In an environment of its own, from the repository's root:

    pip install -e '.[hf]' torch transformers 'trl==1.16.*'
    python -m tests.align.make_trl_fixtures

The weights are drawn here, by NumPy, and reach trl through our own Hugging Face folder, so that
log-probabilities are compared end to end: tokens, padding, positions, logits and sums, not the formula alone.
The fixture holds the rows and the answers; the test draws the same weights.
"""

import contextlib
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.types import Params

FIXTURE = Path(__file__).parent / "fixtures" / "trl_direct.json"
CONFIG = TransformerConfig(40, width=16, layers=2, heads=4, context=32)
STOP = 1
BETA, MARGIN, SMOOTHING, WEIGHTS = 0.3, 0.7, 0.2, (1.5, 0.8)
LENGTHS = ((1, 3, 2), (4, 1, 5), (6, 4, 4), (2, 6, 3), (5, 2, 6), (3, 5, 1))
"""Tokens of each row's prompt, chosen and rejected answer, before the stop token."""
BARE = ((1, 4, 4),) * 4
"""Rows of which trl's ORPO and the paper's imitate the same tokens with the same weights."""


def draw_params(seed: int, scale: float = 0.4) -> Params:
    """Return weights of `CONFIG` drawn leaf by leaf in the order of their paths; NumPy keeps this stream."""
    draw = np.random.RandomState(seed)
    shapes = jax.eval_shape(make_transformer(CONFIG).init, jax.random.key(0))
    return jax.tree.map(
        lambda x: (scale * draw.standard_normal(x.shape) / max(1, x.shape[-1] / 16) ** 0.5).astype(
            np.float32
        ),
        shapes,
    )


def draw_models() -> tuple[Params, Params]:
    """Return the reference's weights, and the policy's some way off."""
    reference = draw_params(7)
    return reference, jax.tree.map(np.add, reference, draw_params(8, 0.1))


def draw_rows(lengths: tuple[tuple[int, ...], ...] = LENGTHS) -> list[dict[str, list[int]]]:
    """Return comparisons as token ids; an answer ends in the stop token."""
    draw = np.random.RandomState(9)
    text = lambda count: draw.randint(2, CONFIG.vocab_size, count).tolist()
    return [
        {"prompt": text(p), "chosen": [*text(c), STOP], "rejected": [*text(r), STOP]} for p, c, r in lengths
    ]


def unpair(rows: list[dict[str, list[int]]]) -> list[dict[str, Any]]:
    """Return the answers of comparisons one by one: of the first two rows both, then good and bad in turn."""
    chosen = [{"prompt": r["prompt"], "completion": r["chosen"], "label": True} for r in rows]
    rejected = [{"prompt": r["prompt"], "completion": r["rejected"], "label": False} for r in rows]
    return [*chosen[:2], *rejected[:2], chosen[2], rejected[3], chosen[4]]


def as_text(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in words, w00, w01, ..., which is what trl tokenises."""
    words = lambda ids: "".join(f" w{i:02}" for i in ids)
    return {k: words(v) if isinstance(v, list) else v for k, v in row.items()}


def load(params: Params) -> Any:
    """Return a model of transformers, read from a folder that we write."""
    from transformers import GPT2LMHeadModel

    from jaxrl_align.runtime.huggingface import save_model

    with tempfile.TemporaryDirectory() as folder:
        made = save_model(Path(folder) / "model", CONFIG, params, stop_tokens=[STOP])
        return GPT2LMHeadModel.from_pretrained(made).eval()


def make_tokenizer() -> Any:
    """Return a tokenizer whose words are the numbers of the tokens."""
    import tokenizers
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    made = tokenizers.Tokenizer(WordLevel({f"w{i:02}": i for i in range(CONFIG.vocab_size)}, unk_token="w00"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="w00", eos_token=f"w{STOP:02}")


def answer(
    trainer: Any,
    config: Any,
    rows: list[dict[str, Any]],
    policy: Params,
    reference: Any = None,
    **settings: Any,
) -> dict[str, float]:
    """Return a trainer's loss and metrics of one batch, the rows in their order.

    Args:
      trainer: trl's class.
      config: its configuration's class.
      rows: the batch, token ids.
      policy: its weights.
      reference: the reference's; None, the trainer has none.
      **settings: of the configuration.
    """
    from datasets import Dataset

    made = trainer(
        model=load(policy),
        args=config(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=len(rows),
            use_cpu=True,
            bf16=False,
            report_to="none",
            **settings,
        ),
        train_dataset=Dataset.from_list([as_text(row) for row in rows]),
        processing_class=make_tokenizer(),
        **({} if reference is None else {"ref_model": load(reference)}),
    )
    model = made.model.eval()
    batch = made.data_collator([made.train_dataset[i] for i in range(len(rows))])
    if hasattr(made, "get_batch_loss_metrics"):
        loss, metrics = made.get_batch_loss_metrics(model, batch)
    else:
        loss = made._compute_loss(model, batch, False)
        metrics = {name: values[-1] for name, values in made._metrics["eval"].items()}
    return {"loss": loss.item()} | {k: float(v) for k, v in metrics.items() if not k.startswith("logits")}


def make_answers() -> dict[str, dict[str, float]]:
    """Return the losses and metrics of every method."""
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    (reference, policy), rows = draw_models(), draw_rows()
    dpo = lambda kind, rows=rows, **settings: answer(
        DPOTrainer, DPOConfig, rows, policy, reference, loss_type=[kind], beta=BETA, **settings
    )
    # In a batch of one row nothing is sorted, and AOT is DPO with smoothed labels.
    smoothed = [dpo("aot", [row], label_smoothing=SMOOTHING) for row in rows]
    weights = dict(zip(("desirable_weight", "undesirable_weight"), WEIGHTS, strict=True))
    kto = lambda *models: answer(KTOTrainer, KTOConfig, unpair(rows), *models, beta=BETA, **weights)
    orpo = lambda rows: answer(ORPOTrainer, ORPOConfig, rows, policy, beta=BETA)
    simpo = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": BETA, "simpo_gamma": MARGIN}
    return {
        "dpo": dpo("sigmoid"),
        "cdpo": {name: float(np.mean([one[name] for one in smoothed])) for name in smoothed[0]},
        "ipo": dpo("ipo"),
        "kto": kto(reference, policy),
        "kto_clamped": kto(policy, reference),
        "orpo": orpo(rows),
        "orpo_bare": orpo(draw_rows(BARE)),
        "simpo": answer(CPOTrainer, CPOConfig, rows, policy, **simpo),
    }


def main() -> None:
    """Write the fixture."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent):
        answers = make_answers()
    libraries = {name: version(name) for name in ("trl", "transformers", "torch")}
    origin = (
        "the trainers of trl, loss of one batch in evaluation mode: python -m tests.align.make_trl_fixtures"
    )
    FIXTURE.parent.mkdir(exist_ok=True)
    text = json.dumps(
        {"origin": origin, "versions": libraries, "rows": draw_rows(), "answers": answers}, indent=1
    )
    FIXTURE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
