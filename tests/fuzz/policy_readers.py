"""The reader of a policy's folder: what it describes, and its numbers."""

import hashlib
import json
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.evaluate import KeptPolicy, load_policy, save_policy
from jaxrl_align.nets import make_actor_critic_net
from tests.fuzz.readers import Reader

NET = make_actor_critic_net(2, (3,))


def _write_policy(folder: Path) -> None:
    shapes = {"policy_0": (4, 3), "policy_head": (3, 2), "value_0": (4, 3), "value_head": (3, 1)}
    params = {name: {"kernel": jnp.ones(s), "bias": jnp.ones(s[1])} for name, s in shapes.items()}
    save_policy(folder / "policy", NET, params, env="CartPole-v1", trained={"seed": 1, "config": {"a": [2]}})


def _complain_of_policy(policy: KeptPolicy) -> str | None:
    seen = policy.observation
    action = np.asarray(policy.greedy(jax.random.key(0), jnp.ones(seen.shape, seen.dtype)))
    if np.prod(seen.shape) != 4 or not (policy.env is None or isinstance(policy.env, str)):
        return f"a policy of {policy.env!r} that sees {seen}"
    return None if action.shape == () and action in (0, 1) else f"the action {action}"


def _lying(change: dict, tensors: dict[str, tuple[int, ...]] | None = None) -> dict[str, bytes]:
    """Return files whose sums are right, and which say something else."""
    arguments = {"num_actions": 2, "hidden": [3], "activation": "tanh", "shared": False}
    arguments |= {"action_values": False, "channels": 0}
    said = {
        "version": 1,
        "net": {"function": "make_actor_critic_net", "arguments": arguments | change.pop("arguments", {})},
        "kind": "Categorical",
        "epsilon": 0.05,
        "observation": {"shape": [4], "dtype": "float32"},
        "action": {"kind": "Discrete", "n": 2},
        "normalised": False,
    }
    header, at = {}, 0
    for name, shape in (tensors or {"params/a": (2,)}).items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(at)
    said |= {"sha256": hashlib.sha256(data).hexdigest()} | change
    return {"policy/policy.json": json.dumps(said).encode(), "policy/policy.safetensors": data}


READERS = (
    Reader(
        "policy",
        _write_policy,
        load_policy,
        _complain_of_policy,
        hostile=(
            _lying({}),
            _lying({"arguments": {"hidden": [2**31 - 1] * 30}}),
            _lying({"arguments": {"hidden": [2] * 10_000}}),
            _lying({"arguments": {"channels": 2**31 - 1}}),
            _lying({"observation": {"shape": [2**31 - 1] * 8, "dtype": "float32"}}),
            _lying({"observation": {"shape": [1] * 100_000, "dtype": "float32"}}),
            _lying(
                {"action": {"kind": "MultiDiscrete", "nvec": [2**31 - 1] * 9}, "kind": "MultiCategorical"}
            ),
            _lying(
                {
                    "action": {
                        "kind": "Box",
                        "shape": [2**31 - 1] * 9,
                        "low": [0],
                        "high": [1],
                        "dtype": "int32",
                    }
                }
            ),
            _lying(
                {
                    "net": {
                        "function": "make_multi_discrete_net",
                        "arguments": {
                            "choices": [2**30] * 4,
                            "hidden": [2],
                            "activation": "tanh",
                            "shared": True,
                        },
                    }
                }
            ),
            _lying({"net": {"function": "__import__", "arguments": {"name": "os"}}}),
            _lying({}, {"params/" + "a/" * 5_000: (2,)}),
            _lying({}, {"params": (2,)}),
            {"policy/policy.safetensors": b"\x80\x04cos\nsystem\n"},
        ),
    ),
)
