"""Write what peft and transformers answer with adapters of known weights, for `test_adapters_peft.py`.

In an environment of its own, from the repository's root:

    pip install -e . torch transformers 'peft==0.21.*'
    python -m tests.nets.make_peft_fixtures

Weights are drawn by their names, in our layout, from fixed seeds: the fixture holds only the logits.
"""

import json

import numpy as np
import peft
import torch
import transformers

from tests.nets import test_adapters_peft as case

PEFT = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NORMS = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
MODULES = [name.split(".")[1] for name in PEFT.values()]
LINEARS = {"r": case.RANK, "lora_alpha": case.ALPHA, "target_modules": MODULES}
SCALED = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
VIRTUAL = {"task_type": "CAUSAL_LM", "num_virtual_tokens": case.VIRTUAL}
CONFIGS = {
    "lora": peft.LoraConfig(**LINEARS),
    "rslora": peft.LoraConfig(**LINEARS, use_rslora=True),
    "dora": peft.LoraConfig(**LINEARS, use_dora=True),
    "ia3": peft.IA3Config(**SCALED),
    "prompt": peft.PromptTuningConfig(**VIRTUAL),
    "prefix": peft.PrefixTuningConfig(**VIRTUAL),
}


def tensor(array):
    return torch.tensor(np.array(array, np.float32))


def build_base():
    """Return transformers' Llama with our weights."""
    config = transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        rms_norm_eps=1e-5,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    )
    params = case.draw_base()
    named = {"model.embed_tokens.weight": params["tokens"], "lm_head.weight": params["head"].T}
    named["model.norm.weight"] = params["final_norm"]["scale"]
    for i in range(2):
        for ours, theirs in PEFT.items():
            named[f"model.layers.{i}.{theirs}.weight"] = params["layers"][ours]["kernel"][i].T
            named[f"model.layers.{i}.{theirs}.bias"] = params["layers"][ours]["bias"][i]
        for ours, theirs in NORMS.items():
            named[f"model.layers.{i}.{theirs}.weight"] = params["layers"][ours]["scale"][i]
    model = transformers.LlamaForCausalLM(config).eval()
    missing, extra = model.load_state_dict({k: tensor(v) for k, v in named.items()}, strict=False)
    assert not extra and not missing, (missing, extra)
    return model


def name_tensors(way, part):
    """Return our part under peft's names."""
    if way == "prompt":
        return {"prompt_embeddings": part["prompt"]["table"]}
    layers = part["layers"]
    if way == "prefix":  # [layers, n, kv_heads * depth] each, side by side in one row for each virtual token
        both = np.stack([layers["prefix"]["key"], layers["prefix"]["value"]], 1)
        return {"prompt_embeddings": both.transpose(2, 0, 1, 3).reshape(case.VIRTUAL, -1)}
    named = {}
    for ours, kinds in layers.items():
        for own in kinds.values():
            for i in range(2):
                place = f"base_model.model.model.layers.{i}.{PEFT[ours]}"
                if "vector" in own:
                    vector = own["vector"][i]
                    named[f"{place}.ia3_l"] = vector[None] if ours == "down" else vector[:, None]
                    continue
                named[f"{place}.lora_A.weight"] = own["a"][i].T
                named[f"{place}.lora_B.weight"] = own["b"][i].T
                if "magnitude" in own:
                    named[f"{place}.lora_magnitude_vector"] = own["magnitude"][i]
    return named


def main():
    """Write the fixture."""
    found = {}
    for way, config in CONFIGS.items():
        model = peft.get_peft_model(build_base(), config).eval()
        result = peft.set_peft_model_state_dict(
            model, {k: tensor(v) for k, v in name_tensors(way, case.draw_part(way)[1]).items()}
        )
        assert set(result.unexpected_keys) <= {"prompt_embeddings"}, result.unexpected_keys
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([case.TOKENS])).logits[0, -len(case.TOKENS) :]
        found[way] = np.round(logits.numpy().astype(float), 6).tolist()
    versions = {m.__name__: m.__version__ for m in (peft, transformers, torch)}
    case.FIXTURE.write_text(json.dumps({"versions": versions, "logits": found}))


if __name__ == "__main__":
    main()
