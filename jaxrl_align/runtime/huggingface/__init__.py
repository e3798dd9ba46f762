"""Language models from and to local Hugging Face folders, and from GGUF files.

`families.py` has a record of each model family: GPT-2, Llama, Qwen2, Qwen3, Mistral, Gemma 3 (text), SmolLM3
and OLMo 2; `parts.py` what its `config.json` is put together from. `models.py` loads and
`saving.py` writes; `config.py` translates configurations, `tensors.py` weights, and `storage.py` reads and
writes safetensors. `gguf.py` reads llama.cpp's files by the same rules, `gguf_tokenizer.py` the tokenizer
within. `peft.py` loads and saves PEFT's adapter folders, `peft_config.py` and `peft_tensors.py` translate
their two files.
"""

from jaxrl_align.runtime.huggingface.adapters.peft import load_adapter, save_adapter
from jaxrl_align.runtime.huggingface.families import FAMILIES
from jaxrl_align.runtime.huggingface.gguf import import_gguf, load_gguf
from jaxrl_align.runtime.huggingface.models import (
    Pretrained,
    find_model,
    load_model,
    load_reward_model,
)
from jaxrl_align.runtime.huggingface.saving import save_model, save_reward_model

# fmt: off
__all__ = [
    "FAMILIES", "Pretrained", "find_model", "import_gguf", "load_adapter", "load_gguf", "load_model",
    "load_reward_model", "save_adapter", "save_model", "save_reward_model",
]
# fmt: on
