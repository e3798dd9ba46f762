"""Ask lm-evaluation-harness's Hugging Face backend, and write what it answers into a fixture.

In an environment of its own, from the repository's root:

    pip install -e '.[hf]' torch transformers accelerate lm-eval==0.4.13
    python -m tests.evaluate.make_harness_fixtures
"""

import importlib.metadata
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

from lm_eval.models.huggingface import HFLM

from jaxrl_align.runtime.huggingface import save_model
from tests.evaluate.harness_cases import CONFIGS, PAIRS, PROMPTS, TEXTS, make_model

FIXTURE = Path(__file__).parent / "fixtures" / "harness.json"


def ask(folder):
    """Return the backend's answers to all requests, one row at a time."""
    peer = HFLM(str(folder), device="cpu", dtype="float32", batch_size=1)
    requests = lambda rows: [SimpleNamespace(args=args, task_name="") for args in rows]
    return {
        "pairs": peer.loglikelihood(requests(PAIRS), disable_tqdm=True),
        "texts": peer.loglikelihood_rolling(requests([(text,) for text in TEXTS]), disable_tqdm=True),
        "written": [peer.generate_until(requests([row]), disable_tqdm=True)[0] for row in PROMPTS],
    }


if __name__ == "__main__":
    found = {"versions": {n: importlib.metadata.version(n) for n in ("lm-eval", "transformers", "torch")}}
    for name in CONFIGS:
        model = make_model(name)
        with tempfile.TemporaryDirectory() as place:
            folder = save_model(
                Path(place) / "model",
                model.config,
                model.params,
                stop_tokens=model.stop_tokens,
                tokenizer=model.tokenizer,
            )
            found[name] = ask(folder)
    FIXTURE.write_text(json.dumps(found) + "\n")
    print(f"{FIXTURE}: {FIXTURE.stat().st_size:,} bytes")
