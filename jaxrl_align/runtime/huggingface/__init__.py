"""Language models from and to local Hugging Face folders: GPT-2, Llama, Qwen2 and Qwen3.

`models.py` loads and saves; `config.py` translates configurations, `tensors.py` weights, and `files.py` reads
and writes safetensors.
"""

from jaxrl_align.runtime.huggingface.models import FAMILIES, Pretrained, load_model, save_model

__all__ = ["FAMILIES", "Pretrained", "load_model", "save_model"]
