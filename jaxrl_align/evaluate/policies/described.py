"""Networks and spaces as a policy's folder describes them, and how they are made of that again."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict

import jax
import numpy as np

from jaxrl_align import nets
from jaxrl_align.envs.actions import Distribution, MultiDiscrete, output_shape
from jaxrl_align.envs.registry import spaces
from jaxrl_align.losses import Categorical, DiagonalGaussian, MultiCategorical, TanhGaussian
from jaxrl_align.nets import Net, QNet
from jaxrl_align.nets.recipes import ACTIVATIONS, Recipe
from jaxrl_align.runtime.folder import to_json
from jaxrl_align.typed import Count, Index, brief, fault_of, short

KINDS_OF_POLICY: dict[str, Distribution] = {
    kind.__name__: kind for kind in (Categorical, MultiCategorical, DiagonalGaussian, TanhGaussian)
}
"""Distributions by their names."""
LAYERS = 32
"""Hidden layers of a net, at most."""

_Activation = Literal[tuple(ACTIVATIONS)]  # type: ignore[valid-type]
_POLICY = {"hidden": list[Count], "activation": _Activation, "shared": bool}
BUILDERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "make_actor_critic_net": (
        nets.make_actor_critic_net,
        {"num_actions": Count, **_POLICY, "action_values": bool, "channels": Index},
    ),
    "make_gaussian_net": (nets.make_gaussian_net, {"action_shape": list[Count], **_POLICY}),
    "make_multi_discrete_net": (nets.make_multi_discrete_net, {"choices": list[Count], **_POLICY}),
    "make_q_net": (
        nets.make_q_net,
        {
            "num_actions": Count,
            "hidden": list[Count],
            "channels": Index,
            "duelling": bool,
            "noisy": bool,
            "support": list[float] | None,
            "quantiles": Count | None,
        },
    ),
    "make_state_action_net": (
        nets.make_state_action_net,
        {"num_actions": Count, "hidden": list[Count]},
    ),
}
"""Functions of `nets` by name, each with the types of its arguments."""


class NetEntries(TypedDict):
    """The recipe of a net."""

    function: str
    arguments: dict[str, Any]


class _KindOfSpace(TypedDict):
    kind: Literal["Discrete", "MultiDiscrete", "Box"]


class ActionSpace(_KindOfSpace, total=False):
    """A space of actions."""

    n: Count
    nvec: list[Count]
    shape: list[Count]
    low: list[float]
    high: list[float]
    dtype: Literal["float32", "int32"]


def describe_space(space: Any) -> dict[str, Any]:
    """Return a space of actions as JSON holds it; an infinite bound is the largest float32.

    Raises:
      ValueError: it is no single choice, several choices, or Box.
    """
    if hasattr(space, "nvec"):
        return {"kind": "MultiDiscrete", "nvec": [int(n) for n in np.ravel(space.nvec)]}
    if hasattr(space, "n"):
        return {"kind": "Discrete", "n": int(space.n)}
    if not hasattr(space, "low"):
        raise ValueError(f"actions must be of a Discrete, MultiDiscrete or Box; got {type(space).__name__}")
    most = float(np.float32(3.4e38))
    bounds = {
        name: np.clip(np.broadcast_to(getattr(space, name), space.shape), -most, most).ravel().tolist()
        for name in ("low", "high")
    }
    whole = np.issubdtype(space.dtype, np.integer)
    return {"kind": "Box", "shape": list(space.shape), "dtype": "int32" if whole else "float32", **bounds}


def make_space(said: Mapping[str, Any]) -> Any:
    """Return the space that was described.

    Raises:
      ValueError: an entry is missing, or a Box has other bounds than its shape needs.
    """
    needed = {"Discrete": ("n",), "MultiDiscrete": ("nvec",), "Box": ("shape", "low", "high", "dtype")}
    if missing := [name for name in needed[said["kind"]] if said.get(name) is None]:
        raise ValueError(f"action must have {', '.join(missing)}, as a {said['kind']} has")
    if said["kind"] == "Discrete":
        return spaces.Discrete(said["n"])
    if said["kind"] == "MultiDiscrete":
        return MultiDiscrete(tuple(said["nvec"]))
    low, high = (np.array(said[name], np.float64) for name in ("low", "high"))
    if {len(low), len(high)} != {math.prod(said["shape"])} or not (low <= high).all():
        raise ValueError(
            f"action must have a low and a high for each number of shape {said['shape']}, no low above its "
            f"high; got {len(low)} and {len(high)}"
        )
    low, high = (x.astype(said["dtype"]).reshape(said["shape"]) for x in (low, high))
    return spaces.Box(low, high, tuple(said["shape"]), np.dtype(said["dtype"]))


def build_net(said: Mapping[str, Any], most: float = math.inf) -> Net | QNet:
    """Return the net of a recipe.

    Args:
      said: its function and arguments.
      most: of a file that holds it, the elements of the largest array; no size can be beyond.

    Raises:
      ValueError: there is no such function, an argument is missing, of another type or too large, or the
        function refuses it.
    """
    if said["function"] not in BUILDERS:
        raise ValueError(f"net must be of {', '.join(BUILDERS)}; got {short(said['function'])}")
    build, kinds = BUILDERS[said["function"]]
    given = said["arguments"]
    if given.keys() != kinds.keys():
        raise ValueError(f"{said['function']} takes {', '.join(kinds)}; got {short(', '.join(given))}")
    for name, kind in kinds.items():
        if fault := fault_of(given[name], kind):
            raise ValueError(f"{name} {fault}; got {short(given[name])}")
        if name == "hidden" and len(given[name]) > LAYERS:
            raise ValueError(f"hidden must be of at most {LAYERS} layers; got {len(given[name])}")
        if name != "support" and _size(name, given[name]) > most:
            raise ValueError(f"{name} is {short(given[name])}, and so larger than any array of the folder")
    settings: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in given.items()}
    if "activation" in settings:
        settings["activation"] = ACTIVATIONS[settings["activation"]]
    if settings.get("support") is not None:
        settings["support"] = np.array(settings["support"], np.float32)
    return build(**settings)


def _size(name: str, value: Any) -> int:
    """Return the length of the largest axis that an argument makes."""
    if isinstance(value, list | tuple):
        if name == "hidden" or not value:
            return max(value, default=0)
        return len(value) * max(value) if name == "choices" else math.prod(value)
    return value if isinstance(value, int) else 0


def expect_params(
    net: Net | QNet, kind: str, space: Any, seen: jax.ShapeDtypeStruct
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a net's parameters by name; nothing of their size is computed.

    Raises:
      ValueError: the net cannot read the observation, or its outputs are not what the actions need.
    """
    assert net.recipe is not None  # build_net gives it one
    if isinstance(net, QNet) != (kind == "values"):
        raise ValueError(f"kind {kind} does not go with a net of {net.recipe.function}")
    try:
        params, got = _trace(net.recipe, seen.shape, str(seen.dtype))
    except Exception as error:  # whatever sizes that do not fit make of tracing
        raise ValueError(
            f"its net cannot read observations of shape {seen.shape} ({brief(error)})"
        ) from error
    needs = (getattr(space, "n", None),) if kind == "values" else output_shape(KINDS_OF_POLICY[kind], space)
    if got != needs:
        raise ValueError(f"its net must have outputs of shape {needs} for its actions; got {got}")
    return dict(params)


@functools.lru_cache(32)
def _trace(recipe: Recipe, shape: tuple[int, ...], dtype: str) -> tuple[Mapping[str, Any], Any]:
    """Return the shapes of the parameters that a recipe's net has, by name, and of its outputs."""
    net = build_net(to_json({"function": recipe.function, "arguments": dict(recipe.arguments)}))
    seen = jax.ShapeDtypeStruct(shape, np.dtype(dtype))
    params = jax.eval_shape(net.init, jax.random.key(0), seen)
    output = jax.eval_shape(net.apply, params, seen)
    output = jax.eval_shape(net.q_values, output) if isinstance(net, QNet) else output[0]
    shapes = {name: leaf.shape for name, leaf in flatten_params(params).items()}
    return shapes, jax.tree.map(lambda x: x.shape, output)


def flatten_params(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by their joined names, "policy_0/kernel"."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        flat |= (
            flatten_params(value, f"{prefix}{name}/")
            if isinstance(value, Mapping)
            else {f"{prefix}{name}": value}
        )
    return flat


def unflatten_params(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dictionaries of which `flatten_params` made these."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split("/")
        functools.reduce(lambda inner, key: inner.setdefault(key, {}), path, tree)[last] = value
    return tree
