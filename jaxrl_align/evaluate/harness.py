"""A model for EleutherAI's lm-evaluation-harness, under the name `jaxrl_align`; extra `[lm-eval]`.

The harness finds a model once this module is imported; its own command imports nothing of other packages, so

    python -m jaxrl_align.evaluate.harness --model jaxrl_align --model_args pretrained=FOLDER --tasks ...

is that command with this model registered. In Python:

    import lm_eval
    from jaxrl_align.evaluate.harness import HarnessLM
    lm_eval.simple_evaluate(model=HarnessLM("FOLDER"), tasks=[...])
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxrl_align.evaluate.scoring.text_requests import TextScorer
from jaxrl_align.nets.adapters import overlay
from jaxrl_align.nets.transformer import make_transformer
from jaxrl_align.runtime.huggingface import Pretrained, load_adapter, load_model

try:
    import lm_eval.models  # noqa: F401, its models are registered only before any other
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ImportError("the harness needs lm-eval; pip install 'jaxrl-align[lm-eval]'") from error


@register_model("jaxrl_align")
class HarnessLM(LM):
    """A language model of a folder, or one in memory, that answers the harness's requests.

    Args:
      pretrained: a local Hugging Face folder, or a `Pretrained` with a tokenizer.
      peft: a folder of a PEFT adapter that was trained on it.
      batch_size: rows at a time, or "auto", 32; it changes the speed, not the answers.
      max_length: tokens that are read at once; None, the context.
      max_gen_toks: the most tokens that are written where a task names no number.
      dtype: of the computation, "float32" or "bfloat16".
      seed: of what is sampled.
      device: must be None or what JAX computes on; the harness passes it along.
      max_batch_size: unused; the harness passes it along.

    Raises:
      ImportError: if `safetensors` is not installed.
      ValueError: for a folder that `load_model` refuses, or one without a tokenizer or a stop token.
    """

    def __init__(
        self,
        pretrained: str | Path | Pretrained,
        *,
        peft: str | None = None,
        batch_size: int | str = "auto",
        max_length: int | None = None,
        max_gen_toks: int = 256,
        dtype: str = "float32",
        seed: int = 0,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        in_memory = isinstance(pretrained, Pretrained)
        model: Any = pretrained if in_memory else load_model(str(pretrained))
        self._name = "jaxrl_align" if in_memory else str(pretrained)
        tokenizer, params = model.tokenizer, model.params
        if tokenizer is None:
            raise ValueError(f"{self._name} must hold a tokenizer.json; got none; copy it from the model")
        if peft is not None:
            part, constants = load_adapter(peft, model.config, params)
            params = overlay(overlay(params, constants), part)
        self.scorer = TextScorer(
            make_transformer(replace(model.config, dtype=dtype)),
            params,
            tokenizer,
            tokenizer.stop_tokens,
            batch_size=32 if str(batch_size).startswith("auto") else int(batch_size),
            length=max_length,
            new_tokens=max_gen_toks,
            seed=seed,
        )

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Return each continuation's log-likelihood, and whether greedy decoding would write it."""
        answers = self.scorer.score_pairs([request.args for request in requests])
        return self._remember("loglikelihood", requests, answers)

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Return each whole text's log-likelihood."""
        answers = self.scorer.score_texts([request.args[0] for request in requests])
        return self._remember("loglikelihood_rolling", requests, answers)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Return what is written behind each prompt."""
        return self._remember(
            "generate_until", requests, self.scorer.write([request.args for request in requests])
        )

    def _remember(self, kind: str, requests: list[Any], answers: list[Any]) -> list[Any]:
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return answers

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as a text; without the generation prompt its last message stays open."""
        template = self.scorer.tokenizer.chat_template
        if template is None:
            raise ValueError(f"{self._name} has no chat template; evaluate it without --apply_chat_template")
        text = template.render(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"]
        last = last if last in text else last.strip()
        return text[: text.rindex(last) + len(last)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the source of the chat template, which the harness notes in its results."""
        template = self.scorer.tokenizer.chat_template
        return None if template is None or not chat_template else template.source

    @property
    def tokenizer_name(self) -> str:
        """Name under which the harness keeps requests that a chat template wrote."""
        return self._name.replace("/", "__")


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
