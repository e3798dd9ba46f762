"""lm-evaluation-harness itself, where it is installed: one folder through its backend and through ours."""

import builtins
import importlib
import sys

import numpy as np
import pytest

from tests.evaluate.harness_cases import ASKED, CONFIGS, PAIRS, PROMPTS, TEXTS, make_model, write_task


def test_without_it_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("lm_eval"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "jaxrl_align.evaluate.harness", raising=False)
    with pytest.raises(ImportError, match=r"needs lm-eval; pip install 'jaxrl-align\[lm-eval\]'"):
        importlib.import_module("jaxrl_align.evaluate.harness")


@pytest.fixture(scope="module")
def harness():
    pytest.importorskip("lm_eval")
    pytest.importorskip("safetensors")
    return importlib.import_module("jaxrl_align.evaluate.harness")


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request, tmp_path_factory):
    pytest.importorskip("lm_eval")
    from jaxrl_align.runtime.huggingface import save_model

    model = make_model(request.param)
    place = tmp_path_factory.mktemp("harness") / request.param
    return save_model(
        place, model.config, model.params, stop_tokens=model.stop_tokens, tokenizer=model.tokenizer
    )


def requests(rows):
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, args, i) for i, args in enumerate(rows)]


@pytest.mark.slow
def test_the_class_answers_as_the_hugging_face_backend(harness, folder):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    ours = harness.HarnessLM(str(folder), batch_size=5)
    peer = huggingface.HFLM(str(folder), device="cpu", dtype="float32", batch_size=3)
    mine, other = (x.loglikelihood(requests(PAIRS)) for x in (ours, peer))
    np.testing.assert_allclose([x for x, _ in mine], [x for x, _ in other], atol=1e-3)
    assert [flag for _, flag in mine] == [flag for _, flag in other]
    texts = requests([(text,) for text in TEXTS])
    np.testing.assert_allclose(
        ours.loglikelihood_rolling(texts), peer.loglikelihood_rolling(texts), atol=1e-3
    )
    assert ours.generate_until(requests(PROMPTS)) == peer.generate_until(requests(PROMPTS))
    talk = [{"role": "user", "content": "is it?"}, {"role": "assistant", "content": "it is "}]
    for history, asks in ((talk[:1], True), (talk, False)):
        assert ours.apply_chat_template(history, asks) == peer.apply_chat_template(history, asks)
    assert ours.chat_template(True) == peer.chat_template(True)
    assert ours.tokenizer_name == peer.tokenizer_name


@pytest.mark.slow
def test_a_task_on_disk_has_equal_results(harness, folder, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.tasks import TaskManager

    task, manager = write_task(tmp_path), TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = []
    for model in (
        harness.HarnessLM(str(folder)),
        huggingface.HFLM(str(folder), device="cpu", dtype="float32"),
    ):
        for chat in (False, True):
            found = lm_eval.simple_evaluate(
                model=model, tasks=[task], task_manager=manager, num_fewshot=1, apply_chat_template=chat
            )
            row = found["results"][task]
            results.append([row[f"{name},none"] for name in ("acc", "acc_norm", "acc_bytes")])
    assert results[:2] == results[2:]
    assert len({*results[0], *results[1]}) > 1


def test_the_command_finds_the_model(harness):
    from lm_eval.api.registry import get_model

    assert get_model("jaxrl_align") is harness.HarnessLM
    assert get_model("dummy").__name__ == "DummyLM", "the harness's own, which need no torch, are there still"
    model = make_model("gpt2")
    assert harness.HarnessLM(model).tokenizer_name == "jaxrl_align"
    bare = model._replace(tokenizer=None)
    with pytest.raises(ValueError, match=r"must hold a tokenizer.json; got none"):
        harness.HarnessLM(bare)
    plain = harness.HarnessLM(model._replace(tokenizer=model.tokenizer))
    plain.scorer.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template; evaluate it without"):
        plain.apply_chat_template([{"role": "user", "content": ASKED}])
