"""What a host's own speed is, on which ratios of the contests depend: it is kept beside every measurement."""

import os
import subprocess
import sys
import time
from typing import Any

from floors import matrix_rate, memory_rate

from jaxrl_align.nets.transformer import TransformerConfig

ECHO = "import os\nwhile word := os.read(0, 1): os.write(1, word)"
"""A program that sends back what it is sent."""


def describe_host() -> dict[str, Any]:
    """Return rates of this host: of large products, of reading memory, and what it costs to wake a core."""
    shape = TransformerConfig(2, width=512, layers=1, heads=1, context=1)
    return {
        "gflop_s": round(matrix_rate(shape, 2048) / 1e9),
        "read_gb_s": round(memory_rate(2.0**28) / 1e9, 1),
        "wake_us": round(waking_seconds() * 1e6, 1),
    }


def waking_seconds(words: int = 2000) -> float:
    """Return the seconds between a word sent to a sleeping process on another core and its awakening.

    Half of the way there and back; the median. Where a system cannot tie processes to cores it chooses them.
    """
    begun = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    cores = sorted(begun)
    tie = lambda core: os.sched_setaffinity(0, {core}) if len(cores) > 1 else None
    tie(cores[-1] if cores else None)
    # It inherits its core from this process.
    other = subprocess.Popen(
        [sys.executable, "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    tie(cores[0] if cores else None)
    try:
        seconds = []
        for _ in range(words):
            begin = time.perf_counter()
            other.stdin.write(b".")
            other.stdout.read(1)
            seconds.append(time.perf_counter() - begin)
    finally:
        other.communicate()
        if cores:
            os.sched_setaffinity(0, begun)
    return sorted(seconds[words // 10 :])[(words - words // 10) // 2] / 2
