"""Tiny GGUF files as llama.cpp's `convert_hf_to_gguf.py` makes them of Hugging Face's entries and tensors."""

import string

import numpy as np

from tests.runtime.make_huggingface_fixtures import draw_weights

CONFIG = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOKENS = ["<|end|>", "<|start|>", "<tool>", "Ġ", *string.ascii_lowercase, "1", "2", "ab", "Ġa", "12"]
TOKENS += [f"[PAD{i}]" for i in range(len(TOKENS), 40)]
KINDS = [3, 3, 4] + [1] * 32 + [5] * 5
TEMPLATE = "{% for m in messages %}<|start|>{{ m['content'] }}{{ eos_token }}{% endfor %}"


def shapes_of(config):
    """Return the shapes of Llama's tensors without biases, by Hugging Face's names."""
    width, hidden, depth = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, groups = config["num_attention_heads"] * depth, config["num_key_value_heads"] * depth
    layer = {
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
        "self_attn.q_proj": (heads, width),
        "self_attn.k_proj": (groups, width),
        "self_attn.v_proj": (groups, width),
        "self_attn.o_proj": (width, heads),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
    }
    shapes = {
        f"model.layers.{i}.{name}.weight": shape
        for i in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }
    embedding = (config["vocab_size"], width)
    shapes |= {"model.embed_tokens.weight": embedding, "model.norm.weight": (width,)}
    return shapes | ({} if config["tie_word_embeddings"] else {"lm_head.weight": embedding})


def tensors_to_gguf(config, tensors):
    """Return Hugging Face's tensors under llama.cpp's names, Llama's queries and keys interleaved."""
    found = {}
    for name, array in tensors.items():
        if config["model_type"] == "llama":
            if ".q_proj." in name:
                array = permute(array, config["num_attention_heads"])
            elif ".k_proj." in name:
                array = permute(array, config["num_key_value_heads"])
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs + ".", ours + ".")
        found[name] = array
    return found


def permute(weights, heads):
    """Move rows as `LlamaModel.permute` of convert_hf_to_gguf.py does."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def metadata_of(config):
    """Return the entries of a GGUF file, a tokenizer's among them."""
    name = config["model_type"]
    entries = {
        "general.type": "model",
        f"{name}.block_count": config["num_hidden_layers"],
        f"{name}.context_length": config["max_position_embeddings"],
        f"{name}.embedding_length": config["hidden_size"],
        f"{name}.feed_forward_length": config["intermediate_size"],
        f"{name}.attention.head_count": config["num_attention_heads"],
        f"{name}.attention.head_count_kv": config["num_key_value_heads"],
        f"{name}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{name}.rope.freq_base": (config.get("rope_parameters") or config)["rope_theta"],
    }
    if depth := config.get("head_dim"):
        entries |= {f"{name}.attention.key_length": depth, f"{name}.attention.value_length": depth}
    if (config.get("rope_parameters") or {}).get("rope_type") == "linear":
        factor = config["rope_parameters"]["factor"]
        entries |= {f"{name}.rope.scaling.type": "linear", f"{name}.rope.scaling.factor": factor}
    return entries | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": KINDS,
        "tokenizer.ggml.merges": ["a b", "Ġ a", "1 2"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }


def write_gguf(path, config=CONFIG, tensors=None, *, changed=None, kinds=None, big_endian=False):
    """Write a file and return its path.

    Args:
      path: of the file.
      config: entries of Hugging Face's `config.json`.
      tensors: Hugging Face's, by default drawn.
      changed: entries of metadata, and tensors as arrays, by llama.cpp's names; None removes one.
      kinds: the names of tensors' quantisation types, by llama.cpp's names; None keeps their dtype.
      big_endian: as machines other than this write.
    """
    import gguf

    tensors = draw_weights(shapes_of(config)) if tensors is None else tensors
    entries = metadata_of(config) | tensors_to_gguf(config, tensors) | (changed or {})
    endian = gguf.GGUFEndian.BIG if big_endian else gguf.GGUFEndian.LITTLE
    architecture = entries.pop("general.architecture", config["model_type"])
    writer = gguf.GGUFWriter(path, architecture, endianess=endian)
    kind_of = {str: "STRING", bool: "BOOL", int: "UINT32", float: "FLOAT32", list: "ARRAY"}
    for name, value in entries.items():
        if isinstance(value, np.ndarray):
            kind = (kinds or {}).get(name)
            raw = None if kind is None else gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, value if raw is None else gguf.quantize(value, raw), raw_dtype=raw)
        elif value is not None:
            writer.add_key_value(name, value, gguf.GGUFValueType[kind_of[type(value)]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
