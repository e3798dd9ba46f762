"""Check members on two CPU devices; a program of its own, because devices are chosen before JAX starts."""

import runpy
import sys
from pathlib import Path

import jax
import numpy as np

from jaxrl_align.runtime.folder import open_run
from jaxrl_align.runtime.loop import run
from jaxrl_align.runtime.mesh import shard_members, use_cpu_devices


def main(path):
    use_cpu_devices(2)
    assert jax.local_device_count() == 2
    use_cpu_devices(4)  # too late, and harmless
    assert jax.local_device_count() == 2
    program = runpy.run_path(str(Path(__file__).with_name("program.py")))
    step, state = program["make_problem"](members=4)
    plain, plain_history = run(step, state, 12, chunk=4, progress=False)

    placed = shard_members(state)
    text = jax.jit(step).lower(placed).compile().as_text()
    assert not any(word in text for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **kwargs: (
            compiled.append(kwargs.get("fun_name")) if "backend_compile" in name else None
        )
    )
    whole, history = run(step, placed, 12, chunk=4, folder=open_run(path / "whole", {}), progress=False)
    assert compiled.count("jit(advance)") == 1, compiled
    assert all(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(whole))
    np.testing.assert_allclose(history["loss"], plain_history["loss"], atol=1e-6)
    np.testing.assert_allclose(whole.params["w"], plain.params["w"], atol=1e-6)

    run(step, placed, 8, chunk=4, folder=open_run(path / "parts", {}), progress=False)
    folder = open_run(path / "parts", {}, resume=True)
    resumed, _ = run(step, placed, 12, chunk=4, folder=folder, progress=False)
    assert all(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(resumed))
    np.testing.assert_array_equal(resumed.params["w"], whole.params["w"])
    np.testing.assert_array_equal(jax.random.key_data(resumed.key), jax.random.key_data(whole.key))

    odd = program["make_problem"](members=3)[1]
    assert shard_members(odd) is odd  # two devices do not divide three members


if __name__ == "__main__":
    main(Path(sys.argv[1]))
