"""Take the steps of learners on one of eight CPU devices and on meshes of them, and write what differs.

python -m tests.devices.mesh_program OUT.json [case ...]; a program of its own, because devices are chosen
before JAX starts.
"""

import json
import sys
import warnings
from pathlib import Path

import jax
import numpy as np

from jaxrl_align.runtime.devices.collectives import list_collectives
from jaxrl_align.runtime.devices.spreading import settled, spread
from jaxrl_align.runtime.loop import run
from jaxrl_align.runtime.mesh import shard_members, use_cpu_devices, use_mesh

DEVICES = 8
STEPS = 3


def start(case):
    """Return the step and the first state of a case, on the mesh that is set."""
    if not case.members:
        return case.learner.step, case.learner.init(jax.random.key(1), case.hparams, case.params)
    keys = jax.random.split(jax.random.key(1), case.members)
    state = jax.jit(jax.vmap(case.learner.init, (0, None)))(keys, case.hparams)
    return jax.vmap(case.learner.step), shard_members(state)


def plain(tree):
    """Return the numbers of a tree by their names; random keys as words."""
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    words = jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)
    named = jax.tree_util.tree_leaves_with_path(words)
    return {jax.tree_util.keystr(path): np.asarray(leaf, np.float64) for path, leaf in named}


def largest_difference(one, other):
    """Return the largest difference of two trees, relative where numbers are above 1, and its place."""
    worst = (0.0, "")
    for name, a in one.items():
        if a.size:
            gap = np.abs(a - other[name]) / np.maximum(np.abs(a), 1.0)
            gap = np.where(np.isnan(a) & np.isnan(other[name]), 0.0, gap)
            worst = max(worst, (float(np.max(gap)), name))
    return worst


def bytes_on_one(tree):
    """Return the bytes that one device holds of a tree."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def look_at(case, mesh):
    """Return the numbers after the steps, and what the program of one step is like."""
    with use_mesh(mesh):
        step, state = start(case)
        state, frozen = spread(state), spread(case.frozen)
        places = {"out_shardings": settled(state)} if mesh else {}
        compiled = jax.jit(step, **places).lower(state, None, frozen).compile()
        end, history = state, []
        for _ in range(STEPS):
            end, metrics = compiled(end, None, frozen)
            history.append(metrics)
        seen = {
            "flops": compiled.cost_analysis()["flops"],
            "weights": bytes_on_one((state.params, state.opt_state, frozen)),
            "temporary": compiled.memory_analysis().temp_size_in_bytes,
            "collectives": list_collectives(compiled.as_text()),
        }
        return plain((end, history)), seen


def refused(case, mesh):
    """Return what a run on a mesh is refused with, or warned of."""
    with warnings.catch_warnings(record=True) as warned, use_mesh(mesh):
        warnings.simplefilter("always")
        try:
            step, state = start(case)
            run(step, state, 1, frozen=case.frozen, progress=False)
        except ValueError as error:
            return str(error)
    return " ".join(str(warning.message) for warning in warned if warning.category is UserWarning)


def main(out, names):
    """Compare, and write the findings as JSON; a name may say which of its meshes: "lm@fsdp=8"."""
    use_cpu_devices(DEVICES)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    from tests.devices.learners import CASES, make_ppo

    found = {}
    for name, _, meshes in (name.partition("@") for name in names or CASES):
        case = CASES[name]()
        case = case._replace(meshes=tuple(meshes.split(";"))) if meshes else case
        one, alone = look_at(case, None)
        found[name] = {"alone": alone, "meshes": {}}
        for mesh in case.meshes:
            many, seen = look_at(case, mesh)
            gap, place = largest_difference(one, many)
            found[name]["meshes"][mesh] = seen | {"gap": gap, "place": place}
            shares = {key: round(seen[key] / alone[key], 3) for key in ("flops", "weights", "temporary")}
            print(f"{name:16} {mesh:24} {gap:.1e} {place[-40:]:40}", shares, flush=True)
    if not names or "ppo" in names:
        found["refused"] = {
            "model": refused(CASES["ppo"](), "data=4,model=2"),
            "auto": refused(CASES["ppo"](), "auto"),
            "members": refused(CASES["ppo members"]()._replace(members=6), "members=4,data=2"),
            "rows": refused(CASES["ppo"]()._replace(learner=make_ppo(num_envs=12).learner), "data=8"),
            "weights": refused(CASES["odd"](), "fsdp=8"),
        }
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
