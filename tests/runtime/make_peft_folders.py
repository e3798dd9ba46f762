"""Compare our adapter folders with peft's both ways, and write what it answers into a fixture for the suite.

In an environment of its own, from the repository's root:

    pip install -e '.[hf]' torch transformers 'peft==0.21.*'
    python -m tests.runtime.make_peft_folders [--write] [--only gpt2]

The bases are those of `make_huggingface_fixtures.py`. peft reads an adapter of drawn weights, saves it and
answers; ours reads that folder. Then ours saves an adapter of its own, and peft reads that one, without a
warning that it does not give for its own folder.
"""

import argparse
import functools
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import nets
from jaxrl_align.runtime.huggingface import load_adapter, load_model, save_adapter
from tests.runtime.make_huggingface_fixtures import CASES, WIDER, draw_tokens, draw_weights

FIXTURE = Path(__file__).parent / "fixtures" / "peft_folders.json"
KINDS = ("lora", "rslora", "dora", "ia3", "prompt", "prefix", "projected")
STORED = {"gpt2": KINDS[:-1], "llama_biased": KINDS[:-1], "gemma3": ("prompt",), "qwen2": ("prefix",)}
STORED |= {"qwen3": ("rslora",), "mistral": ("rslora",)}
"""What the fixture holds."""
LIMIT = 1e-4
KEPT = slice(4, None, 5)
"""The positions whose logits the fixture holds."""


def draw_adapter(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return an adapter's tensors, drawn in the order of their names: as training might leave them."""
    draw = np.random.RandomState(9)
    center = lambda name: float(name.endswith(("magnitude_vector", "ia3_l")))
    width = lambda name, shape: max(1, shape[-1] / 16) ** 0.5 if "lora_A" in name else 1
    return {
        name: (center(name) + 0.3 * draw.standard_normal(shape) / width(name, shape)).astype(np.float32)
        for name, shape in sorted(shapes.items())
    }


def peft_config(kind: str, gpt2: bool):
    """Return peft's configuration of a kind, which covers some layers, at ranks and scales that differ."""
    import peft

    lora = {"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 5, "fan_in_fan_out": gpt2}
    virtual = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    if kind == "lora":
        down, up = ("mlp.c_proj", "c_fc") if gpt2 else ("down_proj", "up_proj")
        return peft.LoraConfig(
            **lora, target_modules="all-linear", rank_pattern={down: 2}, alpha_pattern={rf".*\.1\..*{up}": 7}
        )
    if kind == "rslora":
        targets = ["c_attn", "attn.c_proj"] if gpt2 else ["q_proj", "v_proj"]
        return peft.LoraConfig(**lora, target_modules=targets, use_rslora=True, layers_to_transform=[1])
    if kind == "dora":
        targets = r".*\.0\..*(q_proj|k_proj|c_attn)|.*mlp.*(down|c)_proj"
        return peft.LoraConfig(**lora, target_modules=targets, use_dora=True)
    if kind == "ia3":
        targets = ["c_attn", "mlp.c_proj"] if gpt2 else ["k_proj", "v_proj", "down_proj"]
        return peft.IA3Config(
            task_type="CAUSAL_LM",
            target_modules=targets,
            feedforward_modules=targets[-1:],
            fan_in_fan_out=gpt2,
        )
    if kind == "prompt":
        return peft.PromptTuningConfig(**virtual)
    return peft.PrefixTuningConfig(**virtual, prefix_projection=kind == "projected")


def draw_tuning(start: Callable[[], nets.Tuning], scale: float = 1.5, step: float = 0.0) -> nets.Tuning:
    """Return what a start gives with random weights, LoRA's scale rising from layer to layer by a share."""
    part, constants = jax.eval_shape(start)  # compiles nothing
    draw = np.random.RandomState(10)

    def leaf(path, x):
        center = float(path[-1].key in ("magnitude", "vector"))
        size = 0.3 / max(1, max(x.shape[-2:]) / 16) ** 0.5
        return (center + size * draw.standard_normal(x.shape)).astype(np.float32)

    scales = lambda x: (scale * (1 + step * np.arange(x.shape[0]))).astype(np.float32)
    return nets.Tuning(jax.tree_util.tree_map_with_path(leaf, part), jax.tree.map(scales, constants))


def draw_part(kind: str, model) -> nets.Tuning:
    """Return an adapter of ours over a loaded model, of random weights; LoRA's layers differ in scale."""
    key, params = jax.random.key(0), model.params
    targets = ("*query", "*value", "*down") if kind == "rslora" else "*"
    lora = lambda: nets.init_lora(key, params, rank=2, dora=kind == "dora", targets=targets)
    prompt = lambda: nets.init_prompt(key, params, length=4)
    prefix = lambda: nets.init_prefix(nets.make_transformer(model.config), params, prompt().part)
    starts = {"ia3": lambda: nets.init_ia3(params), "prompt": prompt, "prefix": prefix, "projected": prefix}
    scale = 3 / (2**0.5 if kind == "rslora" else 2)
    return draw_tuning(starts.get(kind, lora), scale, 0.1 if kind == "lora" else 0.0)


@functools.cache
def program(config: nets.TransformerConfig):
    """Return the compiled function of parameters and tokens [L] that gives the logits [L, V]."""
    lm = nets.make_transformer(config)
    return jax.jit(lambda params, tokens: lm.logits(params, lm.encode(params, tokens)[0]))


def answer(model, tuning: nets.Tuning, tokens: np.ndarray) -> np.ndarray:
    """Return the logits [L, V] of a loaded base with an adapter."""
    params = nets.overlay(nets.overlay(model.params, tuning.constants), tuning.part)
    return np.asarray(program(model.config)(params, jnp.asarray(tokens)))


def peft_answer(model, tokens: np.ndarray) -> np.ndarray:
    """Return the same of a torch model, without what stands at virtual tokens."""
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens)[None]).logits[0, -len(tokens) :].numpy()


def open_base(folder: Path):
    """Return transformers' model of a folder."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def open_adapter(base: Path, folder: Path):
    """Return peft's model of a base and an adapter, and what was warned of or logged."""
    import peft

    said: set[str] = set()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.add(record.getMessage())
    for library in ("peft", "transformers"):
        logging.getLogger(library).addHandler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(open_base(base), folder).eval()
    for library in ("peft", "transformers"):
        logging.getLogger(library).removeHandler(handler)
    return model, said | {str(warning.message) for warning in caught}


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def make_base(name: str, folder: Path, changes: dict[str, int]) -> int:
    """Write a case as transformers does, with drawn weights; return its vocabulary's size."""
    import torch
    import transformers

    kind, values = CASES[name]
    values = values | {key: value for key, value in changes.items() if key in values}
    config = transformers.AutoConfig.for_model(kind, **values)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    drawn = draw_weights(read_shapes(folder / "model.safetensors"))
    model.load_state_dict({key: torch.tensor(x) for key, x in drawn.items()}, strict=False)
    model.save_pretrained(folder)
    return values["vocab_size"]


def compare(name: str, kind: str, folder: Path, changes: dict[str, int]) -> tuple[dict, float]:
    """Check one kind over one case both ways; return its fixture and the largest difference of a logit."""
    import peft
    import torch
    from safetensors.numpy import save_file

    vocabulary = make_base(name, folder / "base", changes)
    tokens, model = draw_tokens(vocabulary), load_model(folder / "base")
    trained = peft.get_peft_model(open_base(folder / "base"), peft_config(kind, name == "gpt2")).eval()
    for parameter in trained.parameters():
        if parameter.requires_grad:  # a projection's, which no file holds
            torch.nn.init.normal_(parameter, std=0.2)
    trained.save_pretrained(folder / "theirs")
    weights = folder / "theirs" / "adapter_model.safetensors"
    shapes = read_shapes(weights)
    if kind != "projected":
        save_file(draw_adapter(shapes), weights, metadata={"format": "pt"})
        trained, usual = open_adapter(folder / "base", folder / "theirs")
        trained.save_pretrained(folder / "theirs")
    else:
        _, usual = open_adapter(folder / "base", folder / "theirs")
    expected = peft_answer(trained, tokens)
    theirs = load_adapter(folder / "theirs", model.config, model.params)
    error = np.abs(answer(model, theirs, tokens) - expected).max()

    ours = draw_part(kind, model)
    base = nets.overlay(model.params, ours.constants)
    save_adapter(folder / "ours", model.config, base, ours.part, base_name=str(folder / "base"))
    back, said = open_adapter(folder / "base", folder / "ours")
    if said - usual:
        raise ArithmeticError(f"{name} {kind}: peft warns: {said - usual}")
    mine = answer(model, ours, tokens)
    back_error = np.abs(peft_answer(back, tokens) - mine).max()
    again = load_adapter(folder / "ours", model.config, model.params)
    same = np.abs(answer(model, again, tokens) - mine).max()
    moved = np.abs(mine - answer(model, nets.Tuning({}, {}), tokens)).max()
    print(
        f"{name:17} {kind:10} theirs read {error:.1e}, ours read by peft {back_error:.1e}, by us {same:.1e}, "
        f"std {expected.std():.1f}, moved {moved:.1f}"
    )
    if max(error, back_error, same) > LIMIT or moved < 0.1:
        raise ArithmeticError(f"{name} {kind}: no parity")
    config = json.loads((folder / "theirs" / "adapter_config.json").read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": None}
    config |= {k: sorted(config[k]) for k in ("target_modules",) if isinstance(config.get(k), list)}
    rounded = [[round(float(x), 5) for x in row] for row in expected[KEPT]]
    return {"config": config, "shapes": shapes, "logits": rounded}, max(error, back_error)


def main() -> None:
    """Check every kind over every case, LoRA at two sizes; write the fixture on request."""
    import peft
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", default="", help="of the cases, those that begin so")
    arguments = parser.parse_args()
    found: dict[str, dict] = {}
    largest, failed = 0.0, []
    for name in CASES:
        for kind in KINDS if name.startswith(arguments.only) else ():
            for changes in (WIDER, {}) if kind in ("lora", "dora") else ({},):
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        found.setdefault(name, {})[kind], error = compare(name, kind, Path(folder), changes)
                        largest = max(largest, error)
                    except (ArithmeticError, ValueError) as error:
                        failed.append(f"{name} {kind}: {error}")
                        print(failed[-1])
    print(f"largest difference {largest:.1e}")
    if failed:
        raise SystemExit(f"{len(failed)} failed")
    if arguments.write:
        old = json.loads(FIXTURE.read_text(encoding="utf-8"))["cases"] if FIXTURE.is_file() else {}
        kept = {name: {k: found[name][k] for k in STORED[name]} for name in STORED if name in found}
        fixture = {
            "origin": "Made by make_peft_folders.py from the libraries below; do not edit.",
            "versions": {m.__name__: m.__version__ for m in (peft, transformers, torch)},
            "cases": old | kept,
        }
        FIXTURE.write_text(json.dumps(fixture) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
