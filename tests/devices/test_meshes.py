"""On eight devices every learner does what it does on one; each device holds and computes its share."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
QUICK = ("lm", "ppo", "ppo members", "dqn", "dpo", "rlhf")
"""Cases that the suite takes; `python -m tests.devices.mesh_program OUT.json` takes all."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the program finds, by case and mesh."""
    out = tmp_path_factory.mktemp("meshes") / "found.json"
    command = [sys.executable, "-m", "tests.devices.mesh_program", str(out), *QUICK]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def every(found):
    for case, seen in found.items():
        for mesh, row in seen["meshes"].items():
            sizes = {name: int(size) for name, size in re.findall(r"(\w+)=(\d+)", mesh)}
            yield f"{case} on {mesh}", sizes, row, seen["alone"]


def test_results_equal_those_of_one_device(found):
    gaps = {name: (row["gap"], row["place"]) for name, _, row, _ in every(found)}
    assert {name: gap for name, gap in gaps.items() if not gap[0] <= 1e-5} == {}


def test_a_device_holds_its_share_of_a_divided_state(found):
    """Of a whole model that trains, with Adam's moments: an eighth and 5% of it; on `data` all of it."""
    for name, sizes, row, alone in every(found):
        if name.startswith(("lm", "rlhf")):
            divided = sizes.get("fsdp", 1) * sizes.get("model", 1)
            assert row["weights"] <= 1.05 * alone["weights"] / divided, name


def test_a_device_computes_its_share(found):
    """Each takes an eighth; what cannot be divided (the environments' loop, noise) is small beside it."""
    for name, _, row, alone in every(found):
        share = row["flops"] / alone["flops"]
        most = {"ppo members": 1.1, "ppo": 0.2, "dqn": 0.3}  # of members, alone is an eighth of them already
        assert share <= most.get(name.split(" on ")[0], 0.15), (name, share)


def test_no_weights_are_gathered_whole_and_no_batch_is_summed_whole(found):
    """A layer's weights are gathered, never all layers'; activations of all rows go between no devices."""
    stacked = re.compile(r"\[2,\d{2,},\d{2,}\]")  # [layers, in, out]
    for name, sizes, row, _ in every(found):
        for kind, shape, _, _, _ in (tuple(c)[:5] for c in row["collectives"]):
            if kind == "all-gather" and not name.startswith(("ppo", "dqn")):
                assert not stacked.search(shape), (name, shape)
            if sizes.get("model", 1) > 1 and kind == "all-gather":
                assert not re.search(r"\[1,128,(128|512)\]|\[1,512,128\]", shape), (name, shape)
            if sizes.get("data", 1) * sizes.get("fsdp", 1) > 1 and kind == "all-reduce":
                assert not re.search(r"\[16,\d+,128\]", shape), (name, shape)
