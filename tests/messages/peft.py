"""PEFT folders that are damaged, of another base or kind, or contradict themselves; parts that do not fit."""

import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import nets
from jaxrl_align.runtime.huggingface import load_adapter, save_adapter
from tests.shapes import GPT2, LLAMA

WEIGHTS = "adapter_model.safetensors"


@functools.cache
def base_of(config):
    shapes = jax.eval_shape(nets.make_transformer(config).init, jax.random.key(0))
    return jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)


def lora(config=LLAMA, **how):
    return nets.init_lora(jax.random.key(0), base_of(config), rank=2, **how)


@functools.cache
def written(kind, config):
    """Return the configuration and the tensors of a folder that is in order."""
    from safetensors.numpy import load_file

    starts = {
        "lora": lambda: lora(config, targets=("*query", "*down")),
        "dora": lambda: lora(config, dora=True, targets="*query"),
        "ia3": lambda: nets.init_ia3(base_of(config)),
        "prompt": lambda: nets.init_prompt(jax.random.key(0), base_of(config), length=3),
    }
    part, constants = starts[kind]()
    with tempfile.TemporaryDirectory() as folder:
        path = save_adapter(
            Path(folder) / "a",
            config,
            nets.overlay(base_of(config), constants),
            jax.tree.map(jnp.ones_like, part),
        )
        return json.loads((path / "adapter_config.json").read_text()), load_file(path / WEIGHTS)


def read(kind="lora", config=LLAMA, tensors=None, damage=lambda data: data, without=(), beside=(), **changed):
    """Load a folder with entries or tensors changed (None removes a tensor), or its file damaged."""
    from safetensors.numpy import save_file

    values, arrays = written(kind, config)
    arrays = {k: x for k, x in (arrays | (tensors or {})).items() if x is not None}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "adapter_config.json").write_text(json.dumps(values | changed))
        save_file(arrays, str(path / WEIGHTS))
        (path / WEIGHTS).write_bytes(damage((path / WEIGHTS).read_bytes()))
        for name in without:
            (path / name).unlink()
        for name in beside:
            (path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
        return load_adapter(path, config, base_of(config))


def save(part, base=None, config=LLAMA):
    """Save a part, to where nothing may be left behind."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_adapter(Path(folder) / "a", config, base_of(config) if base is None else base, part)
        finally:
            assert list(Path(folder).iterdir()) == []


def save_lora(edit=lambda own: own, targets="*query", constants=None, **how):
    part, usual = lora(targets=targets, **how)
    kind = next(iter(part["layers"]["query"]))
    part["layers"]["query"][kind] = edit(part["layers"]["query"][kind])
    return save(part, nets.overlay(base_of(LLAMA), usual if constants is None else constants))


def for_another_base():
    with tempfile.TemporaryDirectory() as folder:
        base, (part, constants) = base_of(LLAMA), lora()
        path = save_adapter(Path(folder) / "a", LLAMA, nets.overlay(base, constants), part)
        load_adapter(path, LLAMA, base | {"tokens": base["tokens"] + 1})


def whole(**changed):
    return functools.partial(read, **changed)


def tensor(name, value, kind="lora"):
    return functools.partial(read, kind, tensors={f"base_model.model.model.layers.{name}": value})


Q, DOWN = "1.self_attn.q_proj.lora_A.weight", "0.mlp.down_proj.lora_B.weight"
ONES = jnp.ones((2, 8, 2))
QUERY, KEY = ({"layers": {n: lora(targets=f"*{n}").part["layers"][n]}} for n in ("query", "key"))
VECTOR, NARROW = ({"ia3_input": {"vector": jnp.full((2, 8), i)}} for i in (1.0, 2.0))
HALF = jax.tree.map(lambda x: x.astype(jnp.float16), QUERY)
STACKED = nets.stack_parts([QUERY, QUERY])
ROWS = {
    # what a folder holds
    "no configuration": (
        whole(without=["adapter_config.json"]),
        "adapter_config.json is missing; give the lo",
    ),
    "no weights": (
        whole(without=[WEIGHTS]),
        "holds no adapter_model.safetensors; give the folder of a saved",
    ),
    "a model's weights instead": (
        whole(without=[WEIGHTS], beside=["model.safetensors.index.json"]),
        "holds no adapter_model.safetensors",
    ),
    "a pickle": (
        whole(without=[WEIGHTS], beside=["adapter_model.bin"]),
        r"holds pickled weights \(adapter_model.bin\), which could run any code and are never opened",
    ),
    "truncated": (
        whole(damage=lambda data: data[:-9]),
        "adapter_model.safetensors is truncated or no safetensors file .*; download it again",
    ),
    "missing": (
        tensor(Q, None),
        "do not fit its adapter_config.json and the base: 1 missing: .*1.self_attn.q_p",
    ),
    "left over": (
        tensor("0.self_attn.v_proj.lora_A.weight", np.ones((2, 8), np.float32)),
        "1 unexpected: base",
    ),
    "another prefix": (
        whole(tensors={"model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((2, 8), np.float32)}),
        "1 unexpected: model.layers.0.self_attn.q_proj.lora_A.weight; take all three from the same adapter",
    ),
    "of another rank": (
        tensor(Q, np.ones((3, 8), np.float32)),
        r"1.self_attn.q_proj.lora_A.weight expected \(2, 8\), got \(3, 8\)",
    ),
    "transposed": (
        tensor(DOWN, np.ones((2, 8), np.float32)),
        r"0.mlp.down_proj.lora_B.weight expected \(8, 2\), got \(2, 8\)",
    ),
    "integers": (
        tensor(Q, np.ones((2, 8), np.int8)),
        "lora_A.weight in .* is of dtype I8; expected F32, BF16",
    ),
    "NaN": (
        tensor(Q, np.full((2, 8), np.nan, np.float32)),
        "lora_A.weight in .* holds 16 NaN or infinite val",
    ),
    "no magnitude": (
        tensor("1.self_attn.q_proj.lora_magnitude_vector", None, "dora"),
        "1 missing: base_model.model.model.layers.1.self_attn.q_proj.lora_magnitude_vector",
    ),
    "a magnitude too much": (
        tensor("1.self_attn.q_proj.lora_magnitude_vector", np.ones(8, np.float32)),
        "1 unexpected: .*q_proj.lora_magnitude_vector",
    ),
    "IA3 on the other side": (
        tensor("0.mlp.down_proj.ia3_l", np.ones((12, 1), np.float32), "ia3"),
        r"down_proj.ia3_l expected \(1, 12\), got \(12, 1\)",
    ),
    "fewer virtual tokens": (
        whole(kind="prompt", num_virtual_tokens=2),
        r"prompt_embeddings expected \(2, 8\), got \(3, 8\)",
    ),
    "a prompt of another width": (
        whole(kind="prompt", tensors={"prompt_embeddings": np.ones((3, 9), np.float32)}),
        r"prompt_embeddings expected \(3, 8\), got \(3, 9\)",
    ),
    "another base": (
        for_another_base,
        "must be laid over the base that it was trained on, [0-9a-f]{12}; got [0-9a-f]{12}: other weights, "
        "another dtype or packing; load that one, or pass any_base=True",
    ),
    "no base": (
        lambda: load_adapter("nowhere", LLAMA, {"layers": {}}),
        "base must hold the parameters of its configuration; got 12 missing: final_norm/scale, head, layers/",
    ),
    "a base of another configuration": (
        lambda: load_adapter("nowhere", LLAMA, base_of(LLAMA) | {"head": np.ones((8, 21))}),
        r"base must hold the parameters of its configuration; got head expected \(8, 20\), got \(8, 21\)",
    ),
    # what its configuration says
    "another kind": (
        whole(peft_type="LOHA"),
        "adapter_config.json: peft_type must be one of LORA, IA3, PROMPT_TUNING, PREFIX_TUNING; got 'LOHA'",
    ),
    "no kind": (
        whole(peft_type=None),
        "peft_type must be one of LORA, .*; got None, which is not supported; me",
    ),
    "biases": (
        whole(bias="all"),
        "bias must be 'none' or left out; got all, which is not supported; merge the",
    ),
    "a bias of B": (
        whole(lora_bias=True),
        "lora_bias must be False or left out; got True, which is not suppor",
    ),
    "whole modules": (
        whole(modules_to_save=["lm_head"]),
        r"modules_to_save must be None or left out; got \['lm_head'\], which is not supported; merge the ada",
    ),
    "tokens": (
        whole(trainable_token_indices=[3]),
        r"trainable_token_indices must be None or .*; got \[3\], wh",
    ),
    "parameters": (whole(target_parameters=["a.b"]), r"target_parameters must be None or .*; got \['a.b'\]"),
    "aLoRA": (whole(alora_invocation_tokens=[1]), r"alora_invocation_tokens must be None .*; got \[1\]"),
    "replicated layers": (
        whole(layer_replication=[[0, 2]]),
        r"layer_replication must be None .*; got \[\[0, 2",
    ),
    "an entry of the future": (
        whole(use_warp=True),
        "use_warp must be None or left out; got True, which is not",
    ),
    "two submodules": (
        whole(kind="prompt", num_transformer_submodules=2),
        "num_transformer_submodules must be 1 or left out; got 2",
    ),
    "PiSSA": (
        whole(init_lora_weights="pissa_niter_4"),
        "init_lora_weights must leave the base as it is; got 'pissa_niter_4', which changes the base's "
        r"kernels; convert it in peft: save_pretrained\(..., path_initial_model_for_weight_conversion=...\)",
    ),
    "an unknown start": (
        whole(init_lora_weights="magic"),
        "must be true, false, gaussian, eva, .*; got 'magic'",
    ),
    "no targets": (
        whole(target_modules=None),
        "target_modules must be a pattern or a list of names; got None",
    ),
    "targets of numbers": (
        whole(target_modules=[3]),
        r"target_modules must be of type str or a list of str, .*; got \[3\]",
    ),
    "the head": (
        whole(target_modules=["q_proj", "lm_head"]),
        "target_modules must be linear layers of the blocks; got lm_head; adapters of embeddings, norms and",
    ),
    "the embedding": (
        whole(target_modules=["q_proj", "embed_tokens"]),
        "got model.embed_tokens; adapters of emb",
    ),
    "everything": (
        whole(target_modules=".*"),
        "got lm_head, model.embed_tokens, model.layers.0.input_layernorm",
    ),
    "another family": (
        whole(target_modules=["c_attn"]),
        r"target_modules must name linear layers of the base; got \['c_attn'\], which are none of self_attn.",
    ),
    "no layer": (
        whole(layers_to_transform=[2]),
        r"must name linear layers of the base; got \['mlp.down_proj', ",
    ),
    "a broken pattern": (
        whole(target_modules="("),
        r"target_modules must hold regular expressions; got \( \(",
    ),
    "a broken rank pattern": (
        whole(rank_pattern={"[": 1}),
        "rank_pattern must hold regular expressions; got",
    ),
    "ranks in a list": (whole(rank_pattern=[1]), r"rank_pattern must be an object; got \[1\]"),
    "rank 0": (whole(r=0), "adapter_config.json: r must be at least 1; got 0"),
    "no rank": (whole(r=None), "r is missing or null"),
    "an alpha in words": (whole(lora_alpha="8"), "lora_alpha must be of type float; got '8'"),
    "an infinite alpha": (whole(lora_alpha=float("inf")), "lora_alpha must be finite .*; got inf"),
    "an alpha beyond floats": (
        whole(lora_alpha=10**400),
        "adapter_config.json: lora_alpha must be finite .*; got 10000",
    ),
    "a dropout of all": (whole(lora_dropout=1.0), "lora_dropout must be from 0 to below 1; got 1.0"),
    "no inputs": (
        whole(kind="ia3", feedforward_modules=None),
        "feedforward_modules is missing or null; give a",
    ),
    "no virtual tokens": (
        whole(kind="prompt", num_virtual_tokens=0),
        "num_virtual_tokens must be at least 1; got",
    ),
    # what is saved
    "saved: nothing": (
        lambda: save({}),
        "part must be of one kind; got nothing; merge all but one into the base",
    ),
    "saved: a bottleneck": (
        lambda: save(nets.init_houlsby(jax.random.key(0), base_of(LLAMA), width=2).part),
        "part must hold lora, dora, ia3, ia3_input beside kernels of the blocks, a prompt or a prefix; got "
        "layers/attention_out/houlsby/down, which a PEFT folder cannot hold; merge, and save the model",
    ),
    "saved: the base's own leaves": (
        lambda: save(nets.select(base_of(LLAMA), "*norm/scale")),
        "got final_norm/scale, which a PEFT folder cannot hold",
    ),
    "saved: two kinds": (
        lambda: save({"layers": QUERY["layers"] | {"key": {"ia3": {"vector": jnp.ones((2, 8))}}}}),
        "part must be of one kind; got ia3, lora; merge all but one into the base",
    ),
    "saved: without constants": (
        lambda: save(QUERY),
        "base must hold the part's constants; got no finite layers/query/lora/scale; give the base that it "
        r"was trained on, nets.overlay\(base, constants\)",
    ),
    "saved: a scale that is no number": (
        lambda: save_lora(constants={"layers": {"query": {"lora": {"scale": jnp.full(2, jnp.nan)}}}}),
        "got no finite layers/query/lora/scale",
    ),
    "saved: without B": (
        lambda: save_lora(lambda own: {"a": own["a"]}),
        "part must hold a, b at layers/query/lora; got a",
    ),
    "saved: of two ranks": (
        lambda: save_lora(lambda own: own | {"a": jnp.ones((2, 8, 3))}),
        r"one rank, and one length, at layers/query/lora; got a of shape \(2, 8, 3\) and b of \(2, 2, 8\)",
    ),
    "saved: NaN": (
        lambda: save_lora(lambda own: own | {"a": jnp.full((2, 8, 2), jnp.nan)}),
        "part/layers/query/lora/a holds NaN or infinite values; nothing was written",
    ),
    "saved: half precision": (
        lambda: save_lora(lambda own: HALF["layers"]["query"]["lora"]),
        "got float16 at la",
    ),
    "saved: two precisions": (
        lambda: save_lora(lambda own: own | {"b": own["b"].astype(jnp.bfloat16)}),
        "part must be all float32 or all bfloat16; got bfloat16 at layers/query/lora/b",
    ),
    "saved: many tasks": (
        lambda: save(STACKED),
        r"a part must fit its base; got shape \(2, 2, 8, 2\) at layers/q",
    ),
    "saved: a prefix of two lengths": (
        lambda: save({"layers": {"prefix": {"key": jnp.ones((2, 3, 8)), "value": jnp.ones((2, 4, 8))}}}),
        r"at layers/prefix; got key of shape \(2, 3, 8\) and value of \(2, 4, 8\)",
    ),
    "saved: over more tuning": (
        lambda: save_lora(
            constants=nets.overlay(lora(targets="*query").constants, {})
            | {"layers": lora(targets="*query").constants["layers"] | KEY["layers"]}
        ),
        "base must hold no tuning beside the part; got layers/key/lora/[ab]; merge it into the base",
    ),
    "saved: inputs of one layer of theirs": (
        lambda: save({"layers": {"query": VECTOR, "key": NARROW, "value": VECTOR}}, config=GPT2),
        "part must multiply a layer's outputs or its input, by one vector; got ia3_input at query key value",
    ),
    "saved: an output between inputs": (
        lambda: save(
            {"layers": {"query": VECTOR, "key": {"ia3": VECTOR["ia3_input"]}, "value": VECTOR}}, config=GPT2
        ),
        "got ia3_input, ia3 at query key value, which PEFT has as one layer",
    ),
    "saved: inputs and outputs": (
        lambda: save({"layers": {"query": VECTOR | {"ia3": VECTOR["ia3_input"]}}}),
        "got ia3, ia3_input at query, which PEFT has as one layer; train one of them",
    ),
}
CASES = {f"PEFT: {name}": (call, ValueError, says) for name, (call, says) in ROWS.items()}
