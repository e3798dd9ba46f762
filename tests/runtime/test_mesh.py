import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxrl_align.runtime.mesh import shard_members


@pytest.mark.slow
def test_members_on_two_devices_equal_members_on_one(tmp_path):
    program = Path(__file__).with_name("mesh_program.py")
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(program), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_leaves_without_a_common_member_axis_are_refused():
    with pytest.raises(ValueError, match="expected leaves that share a leading axis of members"):
        shard_members({"a": jnp.zeros((4, 2)), "b": jnp.zeros(3)})
    with pytest.raises(ValueError, match="expected leaves that share a leading axis of members"):
        shard_members({"a": jnp.zeros(4), "b": jnp.zeros(())})
