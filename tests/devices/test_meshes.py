"""On eight devices every learner does what it does on one; each device holds and computes its share."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
QUICK = (
    "lm@fsdp=2,model=4;data=2,fsdp=2,model=2",
    "ppo",
    "ppo members@members=4,data=2",
    "dqn",
)
"""Cases that the suite takes; `python -m tests.devices.mesh_program OUT.json` takes all."""


def look(out):
    """Return what the program finds, by case and mesh."""
    command = [sys.executable, "-m", "tests.devices.mesh_program", str(out), *QUICK]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def every(found):
    for case, seen in found.items():
        if case == "refused":
            continue
        for mesh, row in seen["meshes"].items():
            sizes = {name: int(size) for name, size in re.findall(r"(\w+)=(\d+)", mesh)}
            yield f"{case} on {mesh}", sizes, row, seen["alone"]


def check_what_a_mesh_cannot_divide_is_named(found):
    said = found["refused"]
    assert "the mesh's axis model=2 divides nothing of this run" in said["model"]
    assert "kernel 0.0" in said["model"] and "; only language models" in said["model"]
    assert "must divide the members; got 6 members on 4 devices" in said["members"]
    assert "the environments; got 12 of them on 8 devices" in said["rows"]
    assert "do not divide some weights" in said["weights"] and "kernel" in said["weights"]
    assert said["auto"] == ""


def check_results_equal_those_of_one_device(found):
    gaps = {name: (row["gap"], row["place"]) for name, _, row, _ in every(found)}
    assert {name: gap for name, gap in gaps.items() if not gap[0] <= 1e-5} == {}


def check_a_device_holds_its_share_of_a_divided_state(found):
    """Of a whole model that trains, with Adam's moments: an eighth and 5% of it; on `data` all of it."""
    for name, sizes, row, alone in every(found):
        if name.startswith(("lm", "rlhf")):
            divided = sizes.get("fsdp", 1) * sizes.get("model", 1)
            assert row["weights"] <= 1.05 * alone["weights"] / divided, name


def check_a_device_computes_its_share(found):
    """Each takes an eighth; what cannot be divided (the environments' loop, noise) is small beside it."""
    for name, _, row, alone in every(found):
        share = row["flops"] / alone["flops"]
        most = {"ppo members": 1.1, "ppo": 0.2, "dqn": 0.3}  # of members, alone is an eighth of them already
        assert share <= most.get(name.split(" on ")[0], 0.15), (name, share)


def check_no_weights_are_gathered_whole_and_no_batch_is_summed_whole(found):
    """A layer's weights are gathered, never all layers'; activations of all rows go between no devices."""
    stacked = re.compile(r"\[2,\d{2,},\d{2,}\]")  # [layers, in, out]
    for name, sizes, row, _ in every(found):
        for kind, shape, _, _, _ in (tuple(c)[:5] for c in row["collectives"]):
            if kind == "all-gather" and not name.startswith(("ppo", "dqn")):
                assert not stacked.search(shape), (name, shape)
            if sizes.get("model", 1) > 1 and kind == "all-gather":
                assert not re.search(r"\[1,128,512\]|\[1,512,128\]", shape), (name, shape)
            if sizes.get("data", 1) * sizes.get("fsdp", 1) > 1 and kind == "all-reduce":
                assert not re.search(r"\[16,\d+,128\]", shape), (name, shape)


def test_eight_devices(tmp_path):
    """One test, since it takes one program."""
    found = look(tmp_path / "found.json")
    check_what_a_mesh_cannot_divide_is_named(found)
    check_results_equal_those_of_one_device(found)
    check_a_device_holds_its_share_of_a_divided_state(found)
    check_a_device_computes_its_share(found)
    check_no_weights_are_gathered_whole_and_no_batch_is_summed_whole(found)
