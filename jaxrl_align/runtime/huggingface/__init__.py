"""Language models from and to local Hugging Face folders.

`families.py` has a record of each model family: GPT-2, Llama, Qwen2, Qwen3, Mistral, Gemma 3 (text), SmolLM3
and OLMo 2; `parts.py` what its `config.json` is put together from. `models.py` loads and saves, `config.py`
translates configurations, `tensors.py` weights, and `storage.py` reads and writes safetensors.
"""

from jaxrl_align.runtime.huggingface.models import (
    FAMILIES,
    Pretrained,
    load_model,
    load_reward_model,
    save_model,
)

__all__ = ["FAMILIES", "Pretrained", "load_model", "load_reward_model", "save_model"]
