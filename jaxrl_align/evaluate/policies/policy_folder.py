"""A policy's folder: how its network is built, its parameters, what it sees and does, how it was trained.

`policy.json` says everything but the numbers, which are in `policy.safetensors`. Opening one executes nothing
that lies in it, and unpickles nothing.
"""

import functools
import hashlib
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.actors import epsilon_greedy, greedy, normalised, sampled
from jaxrl_align.actors.normalisation import Moments, Normaliser
from jaxrl_align.envs.actions import Distribution, to_environment
from jaxrl_align.envs.registry import Environment, make_environment, observation_like
from jaxrl_align.envs.rollout import Policy
from jaxrl_align.evaluate.policies.described import (
    KINDS_OF_POLICY,
    ActionSpace,
    NetEntries,
    build_net,
    describe_space,
    expect_params,
    flatten_params,
    make_space,
    unflatten_params,
)
from jaxrl_align.losses import Categorical
from jaxrl_align.nets import Net, QNet
from jaxrl_align.runtime.folder import to_json, write_json
from jaxrl_align.runtime.huggingface.storage import (
    check_floats,
    read_tensors,
    stored_tensors,
    whole_folder,
    write_tensors,
)
from jaxrl_align.typed import Count, Within, naming, read_object, short
from jaxrl_align.types import Params

POLICY_FILE = "policy.json"
NUMBERS_FILE = "policy.safetensors"
INNER = "policy"
"""The policy's folder inside a run's."""
VERSION = 1
DIMENSIONS = 8
"""Of an observation, at most."""


class Seen(TypedDict):
    """One observation."""

    shape: list[Count]
    dtype: str


class _Optional(TypedDict, total=False):
    env: str
    trained: dict[str, Any]


class PolicyEntries(_Optional):
    """`policy.json`."""

    version: int
    net: NetEntries
    kind: str
    epsilon: float
    observation: Seen
    action: ActionSpace
    normalised: bool
    sha256: str


class KeptPolicy(NamedTuple):
    """A policy as it came out of its folder; both functions return an action that the environment takes."""

    greedy: Policy
    """`(key, obs) -> action`: the distribution's mode, or the action of the largest value."""
    sampled: Policy
    """`(key, obs) -> action`: a draw from the distribution, or epsilon-greedy, as in training."""
    env: str | None
    """The environment's name, where it has one."""
    observation: jax.ShapeDtypeStruct
    """What `obs` must be."""
    action: Any
    """The space of actions."""
    trained: dict[str, Any]
    """How it came about, as it was noted."""


def save_policy(
    folder: str | Path,
    net: Net | QNet,
    params: Params,
    *,
    env: Environment,
    distribution: Distribution = Categorical,
    normaliser: Normaliser | None = None,
    epsilon: float = 0.05,
    trained: Mapping[str, Any] | None = None,
) -> None:
    """Write a policy into a folder, in the place of one that lies there.

    Args:
      folder: is made.
      net: a function of `nets` has built it, so that its recipe is known.
      params: of one member.
      env: what it was trained in, a gymnax name or (environment, params); says what it sees and does.
      distribution: that a `Net`'s output parametrises.
      normaliser: of the observations, `state.env_state.normaliser`.
      epsilon: of a `QNet`'s sampled policy.
      trained: how it came about, JSON values.

    Raises:
      ImportError: safetensors is not installed.
      OSError: it could not be written.
      ValueError: the net has no recipe, or is another than its recipe says; observations of several parts;
        or what `load_policy` would refuse. Nothing is written then.
    """
    made = net.recipe if isinstance(net, Net | QNet) else None
    if made is None:
        raise ValueError(
            f"a policy's folder needs a net that a function of `nets` has built, without memory and with an "
            f"activation of nets.recipes; got a {type(net).__name__} of another make; keep its parameters by "
            f"runtime.save"
        )
    environment, env_params = make_environment(env)
    seen = observation_like(environment, env_params)
    if not hasattr(seen, "shape"):
        raise ValueError("a policy's folder is of observations that are one array; got one of several parts")
    recipe = to_json({"function": made.function, "arguments": dict(made.arguments)})
    moments = None if normaliser is None else normaliser.obs
    numbers = {f"params/{name}": leaf for name, leaf in flatten_params(params).items()}
    if moments is not None:
        numbers |= {"observation/mean": moments.mean, "observation/variance": moments.variance}
    about: dict[str, Any] = {
        "version": VERSION,
        "net": recipe,
        "kind": distribution.__name__ if isinstance(net, Net) else "values",
        "epsilon": float(epsilon),
        "observation": {"shape": seen.shape, "dtype": str(seen.dtype)},
        "action": describe_space(environment.action_space(env_params)),
        "normalised": moments is not None,
        "trained": dict(trained or {}),
    }
    about |= {"env": env} if isinstance(env, str) else {}
    _check_kept(to_json(about | {"sha256": "of what is not yet written"}), numbers)
    _check_recipe(net, recipe, params, seen)
    path = Path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(path) as staged:
        file = staged / NUMBERS_FILE
        write_tensors(file, {name: np.array(leaf, np.float32, order="C") for name, leaf in numbers.items()})
        write_json(staged / POLICY_FILE, about | {"sha256": _digest(file)})
        if staged.parent == path.parent:  # elsewhere, nothing of this process is kept
            shutil.rmtree(path, ignore_errors=True)


def _check_kept(said: dict[str, Any], numbers: Mapping[str, Any]) -> None:
    """Raise ValueError for what `load_policy` would refuse to open."""
    _check_said(said)
    expected = _expect(said)[-1]
    for name in sorted(expected.keys() | numbers.keys()):
        got = np.shape(numbers[name]) if name in numbers else "nothing"
        if expected.get(name, "nothing") != got:
            raise ValueError(
                f"{short(name)} must be of shape {expected.get(name, 'nothing')} for this net; got {got}; of "
                f"several members give one, jax.tree.map(lambda x: x[0], params)"
            )
        if not np.isfinite(np.asarray(numbers[name], np.float32)).all():
            raise ValueError(f"{short(name)} must be finite; it holds NaN or infinite values; train it anew")
    if (np.asarray(numbers.get("observation/variance", 0)) < 0).any():
        raise ValueError("observation/variance must be at least 0; got a negative one; collect it anew")


def _check_recipe(net: Net | QNet, recipe: Mapping[str, Any], params: Params, seen: Any) -> None:
    """Raise ValueError unless the net that the recipe builds computes what the net does."""
    obs = jax.random.normal(jax.random.key(0), seen.shape).astype(seen.dtype)
    outputs = (jax.tree.leaves(one.apply(params, obs)) for one in (net, build_net(recipe)))
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*outputs, strict=True)):
        raise ValueError("the net computes something else than its recipe; it was changed: set recipe=None")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_policy(folder: str | Path) -> KeptPolicy:
    """Open a policy's folder; neither learner nor training code is needed.

        policy = evaluate.load_policy("runs/ppo_cartpole")
        action = policy.greedy(jax.random.key(0), obs)

    Args:
      folder: that `save_policy` wrote, or a run that holds one as `policy/`.

    Raises:
      ImportError: safetensors is not installed.
      ValueError: no such folder, a damaged one, or one whose parts do not fit each other; it names the file.
      OSError: a file cannot be read.
    """
    folder = Path(folder)
    if not (folder / POLICY_FILE).exists() and (folder / INNER / POLICY_FILE).exists():
        folder = folder / INNER
    path = folder / POLICY_FILE
    said = read_object(path, PolicyEntries, advice="give the folder of a kept policy, or a run that has one")
    with naming(path):
        _check_said(said)
    stored = stored_tensors(folder, NUMBERS_FILE)
    if (found := _digest(folder / NUMBERS_FILE)) != said["sha256"]:
        raise ValueError(
            f"{folder / NUMBERS_FILE} is damaged, or of another policy: its SHA-256 is {found[:12]}..., "
            f"not {short(said['sha256'][:12])}; keep the policy again"
        )
    check_floats(stored)
    most = max((int(np.prod(tensor.shape)) for tensor in stored.values()), default=0)
    with naming(path):
        net, space, seen, expected = _expect(said, most)
    _check_shapes(folder, expected, {name: tensor.shape for name, tensor in stored.items()})
    numbers = {name: jnp.asarray(array) for name, array in read_tensors(stored, stored)}
    params = unflatten_params({name: numbers[name] for name in numbers if name.startswith("params/")})[
        "params"
    ]
    best, drawn = _acting(net, params, said, space)
    if said["normalised"]:
        if (numbers["observation/variance"] < 0).any():
            raise ValueError(f"{folder / NUMBERS_FILE} holds a negative variance; keep the policy again")
        moments = Moments(jnp.ones(()), numbers["observation/mean"], numbers["observation/variance"])
        see = functools.partial(normalised, normaliser=Normaliser(moments, None, None))
        best, drawn = see(best), see(drawn)
    return KeptPolicy(best, drawn, said.get("env"), seen, space, said.get("trained") or {})


def _expect(said: dict[str, Any], most: float = math.inf) -> tuple[Net | QNet, Any, Any, dict[str, Any]]:
    """Return the net, the actions and the observation that are described, and their arrays' shapes by name.

    Raises:
      ValueError: they do not go together.
    """
    space, seen = make_space(said["action"]), _make_seen(said["observation"])
    net = build_net(said["net"], most)
    shapes = expect_params(net, said["kind"], space, seen)
    expected = {f"params/{name}": shape for name, shape in shapes.items()}
    if said["normalised"]:
        expected |= {"observation/mean": seen.shape, "observation/variance": seen.shape}
    return net, space, seen, expected


def _check_said(said: dict[str, Any]) -> None:
    """Raise ValueError for what no policy can be."""
    if missing := sorted(name for name in PolicyEntries.__required_keys__ if said.get(name) is None):
        raise ValueError(f"{', '.join(missing)} must be there; keep the policy again")
    if said["version"] != VERSION:
        raise ValueError(f"version must be {VERSION}; got {short(said['version'])}; take a newer jaxrl_align")
    if said["kind"] not in (*KINDS_OF_POLICY, "values"):
        raise ValueError(f"kind must be of {', '.join(KINDS_OF_POLICY)}, values; got {short(said['kind'])}")
    if fault := Within(0, 1).fault(said["epsilon"]):
        raise ValueError(f"epsilon {fault}; got {short(said['epsilon'])}")


def _make_seen(said: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
    if len(said["shape"]) > DIMENSIONS:
        raise ValueError(f"an observation has at most {DIMENSIONS} dimensions; got {len(said['shape'])}")
    known = ("float32", "int32", "bool", "uint8")
    if said["dtype"] not in known:
        raise ValueError(f"an observation's dtype must be of {', '.join(known)}; got {short(said['dtype'])}")
    return jax.ShapeDtypeStruct(tuple(said["shape"]), np.dtype(said["dtype"]))


def _check_shapes(folder: Path, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise ValueError unless the arrays are those that are described."""
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{folder / NUMBERS_FILE} holds {short(name)} of shape {found.get(name, 'nothing')}, but "
                f"{POLICY_FILE} describes {expected.get(name, 'nothing')}; they are of different policies"
            )


def _acting(net: Net | QNet, params: Params, said: Mapping[str, Any], space: Any) -> tuple[Policy, Policy]:
    """Return the greedy and the sampled policy, whose actions are the environment's."""
    if isinstance(net, QNet):
        return epsilon_greedy(net, params), epsilon_greedy(net, params, said["epsilon"])
    kind = KINDS_OF_POLICY[said["kind"]]
    to_env = to_environment(kind, space)

    def through(policy: Policy) -> Policy:
        return lambda key, obs: to_env(policy(key, obs))

    makers: tuple[Callable[..., Policy], ...] = (greedy, sampled)
    best, drawn = (through(make(net, params, kind)) for make in makers)
    return best, drawn
