"""Memory: what this process has taken, and whether a compiled step has room, before it is taken."""

import contextlib
import re
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

HALVED = ("batch_size", "num_envs", "minibatch_size", "prompts", "seeds")
"""Fields of a configuration whose half takes about half of a step's memory, the first to be named first."""


def peak_memory() -> int:
    """Return the largest resident size in bytes that this process has had.

    Linux: its own. Elsewhere it may include what the parent held when it started this process, as `getrusage`
    counts it.
    """
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="ascii"))):
        return 1024 * int(found[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def free_memory() -> int | None:
    """Return the bytes that the default device can still give, or None where neither it nor Linux tells."""
    device, lines = jax.local_devices()[0], Path("/proc/meminfo")
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu" or not lines.exists():
        return None
    found = dict(re.findall(r"^(MemAvailable|SwapFree):\s*(\d+) kB", lines.read_text("ascii"), re.MULTILINE))
    return 1024 * sum(map(int, found.values())) if "MemAvailable" in found else None


def check_room(compiled: Any, config: Mapping[str, Any]) -> None:
    """Raise MemoryError if a compiled program needs more memory, beside its arguments, than there is.

    Args:
      compiled: of `jax.jit(f).lower(...).compile()`; of a backend that does not tell nothing is checked.
      config: of the run, whose fields the error names.
    """
    analysis, free = compiled.memory_analysis(), free_memory()
    if analysis is None or free is None:
        return
    beside = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    if beside > free:
        raise MemoryError(
            f"a step needs {beside / 1e9:.2f} GB beside what is loaded, but {free / 1e9:.2f} GB are free; "
            + name_halves(config)
        )


@contextlib.contextmanager
def explained_shortage(config: Mapping[str, Any]) -> Iterator[None]:
    """Turn the backend's error for memory that it could not take into one that says what to halve."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        asked = re.search(r"allocat\w+ ([\d.]+ ?\w*)", str(error))
        size = f" (it asked for {asked[1]})" if asked else ""
        raise MemoryError(f"the device is out of memory{size}; {name_halves(config)}") from error


def name_halves(config: Mapping[str, Any]) -> str:
    """Return what to do about a step that is too large, with the settings of a run that halve it."""
    counts = {name: config[name] for name in HALVED if isinstance(config.get(name), int)}
    halves = [f"--{name.replace('_', '-')} {n // 2} (now {n})" for name, n in counts.items() if n > 1]
    return f"half of it: {' or '.join(halves)}" if halves else "take smaller batches or fewer members"
