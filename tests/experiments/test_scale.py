"""Sizes of large models from compiled programs: what is read from their text, and a tiny run."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = str(Path(__file__).parents[2] / "experiments" / "benchmarks")

PROGRAM = """
%body (p: f32[2,4,8]) -> f32[2,4,16] {
  %p = bf16[2,4,8]{2,1,0} parameter(0)
  %w = bf16[2,8,16]{2,1,0} parameter(1)
  ROOT %y = f32[2,4,16]{2,1,0} dot(%p, %w), lhs_batch_dims={0}, lhs_contracting_dims={2}
}

ENTRY %main (a: f32[2,4,8]) -> f32[2,4,16] {
  %loop = f32[2,4,16] while(%a), condition=%less, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %x = bf16[4,32] parameter(0)
  %k = bf16[32,5] parameter(1)
  ROOT %z = bf16[4,5]{1,0:T(8,128)} dot(%x, %k), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


@pytest.fixture(scope="module")
def scale():
    sys.path.insert(0, BENCHMARKS)
    yield importlib.import_module("scale")
    sys.path.remove(BENCHMARKS)


def test_products_of_a_program(scale):
    assert scale.list_products(PROGRAM, turns=7) == [
        (2 * 4 * 5 * 32, 2 * (4 * 5 + 4 * 32 + 32 * 5), 1),
        (2 * 2 * 4 * 16 * 8, 4 * 2 * 4 * 16 + 2 * (2 * 4 * 8 + 2 * 8 * 16), 3),
    ]


EXCHANGES = """
ENTRY %main (a: f32[2,4,8]) -> f32[2,4,16] {
  %x = bf16[1000,1000] parameter(0)
  %y = bf16[1000,1000] dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %v = bf16[1000] parameter(1)
  %w = bf16[1000] dot(%x, %v), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %g = bf16[500000] all-gather(%x), replica_groups=[1,64]<=[64]
  %r = f32[1000] all-reduce(%x), replica_groups=[8,8]<=[64]
  ROOT %s = bf16[1000] reduce-scatter(%x), replica_groups=[8,8]<=[64]
}
"""


def test_the_time_of_a_step_is_the_rooflines(scale):
    class Compiled:
        as_text = lambda self: EXCHANGES
        memory_analysis = lambda self: SimpleNamespace(alias_size_in_bytes=3.35e9)

    mesh = SimpleNamespace(shape={"fsdp": 8, "model": 8})
    costs = scale.measure(Compiled(), scale.CHIPS["cuda"], mesh, 1)
    assert costs.flops == 2e9 + 2e6
    # The matrices' product is held up by its operations, the vector's by its bytes; the state goes both ways.
    assert costs.computing == pytest.approx(2e9 / 989e12 + 2.004e6 / 3.35e12 + 2 * 3.35e9 / 3.35e12, rel=1e-9)
    assert costs.exchanged == {"all-gather": (1, 1e6), "all-reduce": (1, 8e3), "reduce-scatter": (1, 16e3)}
    assert costs.exchanging == pytest.approx(1e6 / 400e9 + 24e3 / 450e9)


def test_rings_through_hosts_have_all_their_cards(scale):
    """450 GB/s within a host; 8 cards of 50 GB/s for all chips of several hosts, one for one of each."""
    speed = lambda fsdp, model, devices: scale.link(
        scale.CHIPS["cuda"], {"fsdp": fsdp, "model": model}, devices
    )
    assert [speed(8, 1, 8), speed(64, 1, 64), speed(8, 8, 8), speed(32, 8, 32)] == [450e9, 400e9, 450e9, 50e9]


@pytest.mark.slow
def test_a_tiny_model_in_all_ways():
    command = [sys.executable, f"{BENCHMARKS}/scale.py", "--quick"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout
    rows = re.findall(r"^\| tiny (\w+) 2 \|(.*)$", said, re.M)
    assert [way for way, _ in rows] == ["full", "LoRA", "QLoRA", "RLHF"]
    assert all(re.search(r"\d+ all-(gather|reduce)", row) for _, row in rows)
