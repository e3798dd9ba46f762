"""What the parts of `accelerator.py` share: compiling, timing, the device's ceilings, and rows in a file."""

import collections
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.atomic import atomic_path
from jaxrl_align.runtime.source import source_commit

DATASHEET_FLOPS = 989e12
"""A second: dense bfloat16 products of an H100 SXM and an H200, NVIDIA's data sheets."""


class Timing(NamedTuple):
    """Seconds of a call: the median of some rounds, the fastest and the slowest."""

    median: float
    fastest: float
    slowest: float


@dataclass
class Report:
    """Rows of one run, printed and written as they come, so that a run that is cut off keeps its rows."""

    path: str
    """Of the JSON file, to which rows are added; empty, none is written."""
    limit: float
    """Seconds after which nothing new is begun."""
    listed: int = 0
    """How many of a program's kernels `list_kernels` prints."""
    begin: float = field(default_factory=time.perf_counter)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read the rows that an earlier process left in the file."""
        if self.path and os.path.exists(self.path):
            self.rows = json.loads(Path(self.path).read_text(encoding="utf-8"))

    def late(self, what: str) -> bool:
        """Return whether the time is up, and say what is left out if it is."""
        late = time.perf_counter() - self.begin > self.limit
        if late:
            print(f"  {what}: left out, {self.limit:.0f} s are over", flush=True)
        return late

    def add(
        self,
        part: str,
        what: str,
        value: float,
        unit: str,
        *,
        share: float | None = None,
        ratio: float | None = None,
        spread: tuple[float, float] | None = None,
        note: str = "",
    ) -> None:
        """Print a row and write the file anew.

        Args:
          part: of the benchmark.
          what: was measured.
          value: in `unit`.
          unit: of value and spread.
          share: of the floor's rate that was reached, 1 for all of it.
          ratio: to what the row is compared with.
          spread: lowest and highest value over the rounds.
          note: what share and ratio mean here.
        """
        row = {"part": part, "what": what, "value": value, "unit": unit, "share of floor": share}
        row |= {"ratio": ratio, "spread": spread, "note": note, "device": device_name()}
        self.rows.append(row | {"versions": versions(), "commit": source_commit()})
        cells = [f"{value:,.4g} {unit}"]
        cells += [] if spread is None else [f"[{spread[0]:,.4g}, {spread[1]:,.4g}]"]
        cells += [] if share is None else [f"{share:.1%} of the floor"]
        cells += [] if ratio is None else [f"{ratio:.3g} times"]
        print(f"  {what} | {' | '.join([*cells, note])}", flush=True)
        if self.path:
            with atomic_path(self.path) as path:
                path.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")


def device_name() -> str:
    """Return the kind of the first device, as its driver names it."""
    return jax.devices()[0].device_kind


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that compute, and the compiler's flags if any."""
    found = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "numpy", "flax"):
        found[name] = metadata.version(name)
    if flags := os.environ.get("XLA_FLAGS"):
        found["XLA_FLAGS"] = flags
    return found


def compile_together(calls: Mapping[str, tuple[Any, tuple[Any, ...]]], *, at_once: int = 8) -> dict[str, Any]:
    """Compile programs side by side; one that does not compile is named with its error and left out.

    Args:
      calls: of each, by its name, a jitted function and its arguments.
      at_once: how many; a GPU's compiler tries kernels out, which takes memory.
    """

    def compile_one(item: tuple[str, tuple[Any, tuple[Any, ...]]]) -> Any:
        name, (function, arguments) = item
        begin = time.perf_counter()
        try:
            return function.lower(*arguments).compile()
        except Exception as error:  # whatever it is, the others go on
            print(f"  {name}: does not compile: {shorten(error)}", flush=True)
            return None
        finally:
            print(f"    compiled {name} in {time.perf_counter() - begin:.1f} s", flush=True)

    with ThreadPoolExecutor(at_once) as pool:
        compiled = list(pool.map(compile_one, calls.items()))
    return {name: program for name, program in zip(calls, compiled, strict=True) if program is not None}


def shorten(error: BaseException, most: int = 400) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:most]}"


def measure(call: Callable[[], Any], *, rounds: int = 5, seconds: float = 0.2) -> Timing:
    """Return the seconds of one call, each round long enough to hide the host's clock, after two to warm up.

    Args:
      call: returns arrays, which are waited for at the end of a round.
      rounds: that are timed.
      seconds: how long a round lasts about.
    """
    jax.block_until_ready(call())
    begin = time.perf_counter()
    jax.block_until_ready(call())
    count = max(1, int(seconds / (time.perf_counter() - begin)))
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(count):
            out = call()
        jax.block_until_ready(out)
        taken.append((time.perf_counter() - begin) / count)
    return Timing(float(np.median(taken)), min(taken), max(taken))


def list_kernels(report: Report, call: Callable[[], Any]) -> None:
    """Print the kernels of one call that take longest, kinds together, and how long all of them take."""
    if not report.listed:
        return
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        total, count = collections.Counter[str](), collections.Counter[str]()
        for path in Path(folder).rglob("*.xplane.pb"):
            for name, seconds in read_kernels(path):
                total[name] += seconds
                count[name] += 1
    print(f"    {total.total() * 1e3:.2f} ms in {count.total():,} kernels", flush=True)
    for name, seconds in total.most_common(report.listed):
        print(f"    {seconds * 1e3:9.3f} ms in {count[name]:6,}: {name}", flush=True)


def read_kernels(path: Path) -> Iterator[tuple[str, float]]:
    """Yield the kernels that a trace saw on a GPU's streams, without their numbers, and their seconds."""
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            if plane.name.startswith("/device:GPU") and line.name.startswith("Stream"):
                yield from ((re.sub(r"[._]\d+", "", e.name), e.duration_ns / 1e9) for e in line.events)


class Ceilings(NamedTuple):
    """What the device does at most, measured on it."""

    flops: float
    """A second, one large bfloat16 product of random numbers."""
    bandwidth: float
    """Bytes a second, read and written both counted, of a large copy."""


def measure_ceilings(*, size: int, num_bytes: int) -> tuple[Ceilings, Timing, Timing]:
    """Measure both ceilings.

    Args:
      size: rows and columns of the product's factors.
      num_bytes: of the array that is copied.
    """
    keys = jax.random.split(jax.random.key(0), 2)
    left, right = (jax.random.normal(k, (size, size), jnp.bfloat16) for k in keys)
    product = jax.jit(jnp.matmul)
    multiplying = measure(lambda: product(left, right))
    array = jax.random.normal(keys[0], (num_bytes // 4,))
    shift = jax.jit(lambda x: x + 1.0)
    copying = measure(lambda: shift(array))
    return (
        Ceilings(2.0 * size**3 / multiplying.median, 2.0 * array.nbytes / copying.median),
        multiplying,
        copying,
    )
