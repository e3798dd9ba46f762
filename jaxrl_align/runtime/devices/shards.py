"""Checkpoints of several processes: each writes what its devices hold, through orbax (extra [distributed]).

A checkpoint is a folder: `arrays/`, orbax's, and `metadata.json`, which comes last and makes it whole. It is
read back on any mesh and any number of processes. Unlike the one file of a process alone it has no checksums.
"""

import importlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.atomic import atomic_path
from jaxrl_align.runtime.devices.hosts import is_first, together

METADATA_FILE = "metadata.json"
_ARRAYS = "arrays"
_UNFINISHED = ".unfinished"


def save_shards(path: Path, leaves: Mapping[str, jax.Array], metadata: Mapping[str, Any]) -> None:
    """Write a checkpoint; every process calls it.

    Args:
      path: the folder; what is there is replaced once the new one is whole.
      leaves: by name; no random keys, but their words.
      metadata: what JSON can hold.

    Raises:
      ImportError: orbax is missing.
      OSError: it could not be written.
    """
    beside = path.with_name(f".{path.name}{_UNFINISHED}")
    if is_first():
        for left in path.parent.glob(f".*{_UNFINISHED}"):
            shutil.rmtree(left, ignore_errors=True)
    together(lambda: beside.mkdir(parents=True) if is_first() else None)
    together(lambda: _write_arrays(beside / _ARRAYS, leaves))
    together(lambda: _finish(path, beside, metadata) if is_first() else None)


def _write_arrays(path: Path, leaves: Mapping[str, jax.Array]) -> None:
    orbax = _orbax()
    some = {name: leaf for name, leaf in leaves.items() if leaf.size}  # it refuses those of size zero
    try:
        with orbax.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), some)
    except Exception as error:  # whatever it and its file format raise, of a full disk too
        raise OSError(_in_a_line(error)) from error


def _finish(path: Path, beside: Path, metadata: Mapping[str, Any]) -> None:
    with atomic_path(beside / METADATA_FILE) as temporary:
        temporary.write_text(json.dumps(metadata), encoding="utf-8")
    shutil.rmtree(path, ignore_errors=True)
    os.replace(beside, path)


def read_shards_metadata(path: Path) -> dict[str, Any]:
    """Return what `save_shards` was given beside the arrays.

    Raises:
      OSError, ValueError: the checkpoint is not whole.
    """
    metadata = json.loads((path / METADATA_FILE).read_text(encoding="utf-8"))
    kinds = metadata["leaves"]
    if not isinstance(metadata["config"], dict) or not all(
        {"dtype", "shape"} <= k.keys() for k in kinds.values()
    ):
        raise ValueError("its metadata are not those of a checkpoint")
    return metadata


def restore_shards(path: Path, templates: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return arrays of a checkpoint, each where its template lies; every process calls it.

    Args:
      path: the folder.
      templates: by name, arrays or `jax.ShapeDtypeStruct`s of the shapes and dtypes that are there.

    Raises:
      ImportError: orbax is missing.
      ValueError: the arrays cannot be read.
    """
    orbax = _orbax()
    alone = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    arguments = {
        name: orbax.ArrayRestoreArgs(
            sharding=getattr(x, "sharding", None) or alone, global_shape=x.shape, dtype=x.dtype
        )
        for name, x in templates.items()
        if np.prod(x.shape)
    }
    try:
        with orbax.PyTreeCheckpointer() as checkpointer:
            restore = orbax.args.PyTreeRestore(restore_args=arguments)
            found = checkpointer.restore((path / _ARRAYS).absolute(), args=restore)
    except Exception as error:  # whatever orbax and its file format raise
        raise ValueError(_in_a_line(error)) from error
    return {
        name: found[name] if name in found else jnp.zeros(x.shape, x.dtype) for name, x in templates.items()
    }


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _orbax() -> Any:
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        raise ImportError(
            "checkpoints of several processes need orbax; pip install 'jaxrl-align[distributed]'"
        ) from error
