"""Checkpoints of several processes: each writes what its devices hold, through orbax (extra [distributed]).

A checkpoint is a folder: `arrays/`, orbax's, and `metadata.json`, which comes last and makes it whole. It is
read back on any mesh and any number of processes. Unlike the one file of a process alone it has no checksums.
"""

import importlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.atomic import atomic_path
from jaxrl_align.runtime.devices.hosts import exchange, is_first

METADATA_FILE = "metadata.json"
_ARRAYS = "arrays"


def save_shards(path: Path, leaves: Mapping[str, jax.Array], metadata: Mapping[str, Any]) -> None:
    """Write a checkpoint; every process calls it.

    Args:
      path: the folder; what is there is replaced.
      leaves: by name; no random keys, but their words.
      metadata: what JSON can hold.

    Raises:
      ImportError: orbax is missing.
      OSError: it could not be written.
    """
    orbax = _orbax()
    if is_first():
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    exchange("made")
    with orbax.PyTreeCheckpointer() as checkpointer:  # which refuses arrays of size zero
        checkpointer.save((path / _ARRAYS).absolute(), {name: x for name, x in leaves.items() if x.size})
    with atomic_path(path / METADATA_FILE) as temporary:
        temporary.write_text(json.dumps(metadata), encoding="utf-8")
    exchange("saved")


def read_shards_metadata(path: Path) -> dict[str, Any]:
    """Return what `save_shards` was given beside the arrays.

    Raises:
      OSError, ValueError: the checkpoint is not whole.
    """
    return json.loads((path / METADATA_FILE).read_text(encoding="utf-8"))


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
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{path / _ARRAYS} is damaged ({type(error).__name__}: {reason})") from error
    return {name: found.get(name, jnp.zeros(x.shape, x.dtype)) for name, x in templates.items()}


def _orbax() -> Any:
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        raise ImportError(
            "checkpoints of several processes need orbax; pip install 'jaxrl-align[distributed]'"
        ) from error
