"""Tuning as an overlay: what is trained is a partial tree of parameters laid over a frozen base.

`overlay(base, part)` returns ordinary parameters, so whatever reads parameters (encoding, generation, scores,
probes) works with every way of tuning and depends on none. A part holds some of the base's own leaves
(`select`), or new leaves beside a linear layer's kernel, read by the kinds of `KINDS`:

    part, constants = init_lora(key, base, rank=8)
    base = overlay(base, constants)         # frozen: constants are never among the trained leaves
    hidden, _ = lm.encode(overlay(base, part), tokens)
"""

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.nets.kinds import KINDS, column_norms, is_complete
from jaxrl_align.nets.quantize import dequantise, is_packed, kernel_shape
from jaxrl_align.types import Numeric, Params

Spec = str | Sequence[str] | Callable[[str], bool]
"""Patterns of the shell's kind (`fnmatch`), of which a path, for example "layers/query/kernel", must match
one, or a function of the path. A pattern that matches nothing is an error."""


ROWS = "rows"
"""A part's node whose entries, named by numbers, replace single rows of stacked leaves."""


class Tuning(NamedTuple):
    """The leaves that one way of tuning adds to a base."""

    part: Params
    """The trained leaves, a partial tree."""
    constants: Params
    """Leaves that the part needs and that must not move: `overlay` them on the base."""


def overlay(base: Params | None, part: Params) -> Params:
    """Return the base with a partial tree laid over it; without arithmetic, and copies but for rows.

    Args:
      base: nested dicts of arrays; None, the part is all there is.
      part: a tree of the base's form, or a part of one; its leaves replace the base's. Leaves of `KINDS` are
        placed beside a kernel and need no counterpart; those under `ROWS`, `{"rows": {"3": tree}}`, replace
        rows of the base's stacked leaves, which are copied.

    Raises:
      ValueError: for a leaf of another shape than the base's, or one that the base lacks; it names the path
        and what exists there.
    """
    return part if base is None else _lay(base, part, ())


def _lay(base: Any, part: Any, path: tuple[str, ...]) -> Any:
    if not isinstance(part, dict):
        if isinstance(base, dict) or jax.tree.map(jnp.shape, base) != jax.tree.map(jnp.shape, part):
            raise ValueError(
                f"a part must fit its base; got {_describe(part)} at {_name(path)}, where the base has "
                f"{_describe(base)}"
            )
        return part
    if not isinstance(base, dict):
        raise ValueError(
            f"a part must fit its base; got the entries {sorted(part)} at {_name(path)}, where the base has "
            f"{_describe(base)}"
        )
    laid = dict(base)
    for name, own in part.items():
        if (beside := _new_leaves(base, name)) is not None:
            laid[name] = _beside(*beside, base.get(name, {}), own, (*path, name))
        elif name in base:
            laid[name] = _lay(base[name], own, (*path, name))
        elif name == ROWS:
            for row in own:
                if not jax.tree.leaves(base)[0].shape[0] > int(row) >= 0:
                    raise ValueError(
                        f"a part must fit its base; got {_name((*path, name, row))}, where the base has "
                        f"{jax.tree.leaves(base)[0].shape[0]} rows"
                    )
                _lay(jax.tree.map(lambda x: x[0], base), own[row], (*path, name, row))
            laid |= _replace_rows(base, own)
        else:
            raise ValueError(
                f"a part must fit its base; got {_name((*path, name))}, but the base has "
                f"{', '.join(sorted(base))} there; the kinds {', '.join(KINDS)} lie beside a kernel"
            )
    return laid


def _replace_rows(base: Any, rows: dict[str, Any]) -> Any:
    trees = list(rows.values())
    if isinstance(base, dict):
        if missing := trees[0].keys() - base.keys():
            raise ValueError(f"rows must be of leaves that the base has; got {sorted(missing)}")
        return base | {
            name: _replace_rows(base[name], {row: tree[name] for row, tree in rows.items()})
            for name in trees[0]
        }
    return base.at[jnp.array([int(row) for row in rows])].set(jnp.stack(trees).astype(base.dtype))


def _new_leaves(base: Params, name: str) -> tuple[str, dict[str, tuple[Any, ...]]] | None:
    """Return beside what a node of new leaves may lie in this dict, and their shapes; None if it may not."""
    if name in KINDS and "kernel" in base:
        kernel = kernel_shape(base["kernel"])
        return f"a kernel of shape {kernel}", KINDS[name].trained(kernel)
    if name == "prompt" and "tokens" in base:
        return f"tokens of shape {base['tokens'].shape}", {"table": (None, base["tokens"].shape[1])}
    if name == "prefix" and {"key", "value"} <= base.keys():
        layers, _, out = kernel_shape(base["key"]["kernel"])
        return f"{layers} keys of width {out}", dict.fromkeys(("key", "value"), (layers, None, out))
    return None


def _beside(
    beside: str, shapes: dict[str, tuple[Any, ...]], base: Any, part: Any, path: tuple[str, ...]
) -> dict[str, Any]:
    """Return a node of new leaves: the base's, which are constants, and the part's."""
    for leaf, wanted in shapes.items():
        got = jnp.shape(part[leaf]) if leaf in part else wanted
        if len(got) != len(wanted) or any(w not in (None, g) for w, g in zip(wanted, got, strict=True)):
            shape = str(wanted).replace("None", "any")
            raise ValueError(
                f"a part must fit its base; got shape {got} at {_name((*path, leaf))}, expected {shape} "
                f"beside {beside}"
            )
    return base | part


def _describe(tree: Any) -> str:
    if isinstance(tree, dict):
        return f"the entries {sorted(tree)}"
    shape = jax.tree.map(jnp.shape, tree)
    return f"shape {shape}" if isinstance(shape, tuple) else type(tree).__name__


def _name(path: tuple[str, ...]) -> str:
    return "/".join(path) or "the top"


def select(params: Params, spec: Spec, *, layers: Sequence[int] | None = None) -> Params:
    """Return the partial tree of some of the leaves: selective tuning.

        select(params, "*bias")                  # BitFit (Ben Zaken et al. 2022, arXiv:2106.10199)
        select(params, ["*norm/*", "head"])
        select(params, ["layers/*", "final_norm/*"], layers=range(-2, 0))  # the top two layers

    Args:
      params: nested dicts of arrays.
      spec: a `Spec` of the leaves' paths, for example "layers/query/kernel".
      layers: of the leaves under "layers", which are stacked [layers, ...], select these rows alone, each a
        leaf of its own; -1 is the last. None, all.

    Raises:
      ValueError: if nothing is selected, or a pattern matches nothing; it names the leaves that there are.
        If there are no such layers.
    """

    def list_names(tree: Params, path: tuple[str, ...]) -> list[str]:
        if not isinstance(tree, dict):
            return ["/".join(path)]
        return [found for name, sub in tree.items() for found in list_names(sub, (*path, name))]

    chosen = _matching(list_names(params, ()), spec, "spec", "leaves")
    if layers is not None and not any("layers/" in name for name in chosen):
        raise ValueError(f"spec must match leaves of layers; got {spec!r} and layers={list(layers)}")

    def walk(tree: Params, path: tuple[str, ...]) -> Params | None:
        if not isinstance(tree, dict):
            return tree if "/".join(path) in chosen else None
        found = {name: walk(sub, (*path, name)) for name, sub in tree.items()}
        if layers is not None and isinstance(found.get("layers"), dict):
            found["layers"] = {ROWS: _take_rows(found["layers"], layers)}
        return {name: sub for name, sub in found.items() if sub is not None} or None

    return walk(params, ())


def _take_rows(stacked: Params, rows: Sequence[int]) -> dict[str, Params]:
    count = jax.tree.leaves(stacked)[0].shape[0]
    if outside := [row for row in rows if not -count <= row < count]:
        raise ValueError(f"layers must lie from {-count} to {count - 1}; got {outside}")
    return {str(row % count): jax.tree.map(lambda x, row=row: x[row], stacked) for row in rows}


def _matching(names: Sequence[str], spec: Spec, argument: str, what: str) -> set[str]:
    """Return the names that a spec means; ValueError if it, or a pattern of it, means none."""
    if callable(spec):
        found, missed = set(filter(spec, names)), []
    else:
        patterns = (spec,) if isinstance(spec, str) else tuple(spec)
        hits = {p: {name for name in names if fnmatch.fnmatchcase(name, p)} for p in patterns}
        found, missed = set().union(*hits.values()), [p for p, hit in hits.items() if not hit]
    if missed or not found:
        raise ValueError(
            f"{argument} must match {what}; got {missed or spec!r}, which match none; there are "
            f"{', '.join(sorted(names))}"
        )
    return found


def init_lora(
    key: chex.PRNGKey,
    params: Params,
    *,
    rank: int,
    alpha: float | None = None,
    rslora: bool = False,
    dora: bool = False,
    targets: Spec = "*",
) -> Tuning:
    """Return a low-rank adapter for linear layers of a base; it changes nothing at first, since B = 0.

    Args:
      key: source of A, drawn from U(-1/sqrt(in), 1/sqrt(in)).
      params: the base; a linear layer is a dict with a `kernel` of shape [..., in, out], plain or packed.
      rank: inner dimension, from 1 to the smaller side of each kernel.
      alpha: `(x A) B` is multiplied by alpha / rank; None, by 1.
      rslora: it is multiplied by alpha / sqrt(rank) instead, which suits high ranks (Kalajdzievski 2023,
        arXiv:2312.03732).
      dora: train the columns' magnitudes too, apart from their directions: the kind "dora". It starts as
        the base but for the rounding of a norm.
      targets: a `Spec` of the layers' paths, for example "*query" or ["layers/query", "layers/value"].

    Returns:
      A `Tuning`, at each target `{"lora": {"a": [..., in, rank], "b": [..., rank, out]}}`, and the constants
      `{"lora": {"scale": [...]}}`; of DoRA under "dora", with the trained `{"magnitude": [..., out]}`.

    Raises:
      ValueError: if the rank is below 1 or above a kernel's smaller side, or a pattern matches no layer.
    """
    places = _target(params, targets, "targets")
    limit, where = min((min(kernel_shape(kernel)[-2:]), "/".join(path)) for path, kernel in places.items())
    if not 1 <= rank <= limit:
        raise ValueError(
            f"rank must be from 1 to {limit}, the smaller side of {where}; got {rank}; leave it out "
            "of targets for more"
        )
    scale = (rank if alpha is None else alpha) / (rank**0.5 if rslora else rank)
    part: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    for (path, kernel), place_key in zip(places.items(), jax.random.split(key, len(places)), strict=True):
        *stack, fan_in, fan_out = kernel_shape(kernel)
        bound = fan_in**-0.5
        a = jax.random.uniform(place_key, (*stack, fan_in, rank), minval=-bound, maxval=bound)
        own = {"a": a, "b": jnp.zeros((*stack, rank, fan_out))}
        if dora:
            own["magnitude"] = column_norms(dequantise(kernel) if is_packed(kernel) else kernel)
        _put(part, (*path, "dora" if dora else "lora"), own)
        _put(constants, (*path, "dora" if dora else "lora"), {"scale": jnp.full(stack, scale, jnp.float32)})
    return Tuning(part, constants)


def init_ia3(params: Params, *, outputs: Spec = ("*key", "*value"), inputs: Spec = ("*down",)) -> Tuning:
    """Return vectors of ones that multiply what linear layers write, or read: IA3.

    Args:
      params: the base.
      outputs: a `Spec` of the layers whose outputs, biases included, are multiplied; () for none.
      inputs: of those whose inputs are; by default the feed-forward's second layer.

    Returns:
      A `Tuning`, at each target `{"ia3": {"vector": [..., out]}}` or `{"ia3_input": {"vector": [..., in]}}`.

    Raises:
      ValueError: if a target matches no linear layer.
    """
    part: dict[str, Any] = {}
    for name, spec, argument, axis in (("ia3", outputs, "outputs", -1), ("ia3_input", inputs, "inputs", -2)):
        for path, kernel in ({} if spec == () else _target(params, spec, argument)).items():
            shape = kernel_shape(kernel)
            vector = jnp.ones((*shape[:-2], shape[axis]))
            _put(part, (*path, name), {"vector": vector})
    return Tuning(part, {})


def init_houlsby(
    key: chex.PRNGKey, params: Params, *, width: int, targets: Spec = ("*attention_out", "*down")
) -> Tuning:
    """Return bottlenecks on what linear layers write; they change nothing at first, since U = 0.

    Args:
      key: source of D, drawn from U(-1/sqrt(out), 1/sqrt(out)).
      params: the base.
      width: of the bottleneck, at least 1.
      targets: a `Spec` of the layers' paths; by default those that end attention and the feed-forward.

    Returns:
      A `Tuning`, at each target `{"houlsby": {"down": [..., out, width], "down_bias": [..., width], "up":
      [..., width, out], "up_bias": [..., out]}}`.

    Raises:
      ValueError: if the width is below 1, or a pattern matches no layer.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1; got {width}; a tenth of the model's is usual")
    places = _target(params, targets, "targets")
    part: dict[str, Any] = {}
    for (path, kernel), place_key in zip(places.items(), jax.random.split(key, len(places)), strict=True):
        *stack, _, out = kernel_shape(kernel)
        bound = out**-0.5
        down = jax.random.uniform(place_key, (*stack, out, width), minval=-bound, maxval=bound)
        own = {"down": down, "down_bias": jnp.zeros((*stack, width))}
        own |= {"up": jnp.zeros((*stack, width, out)), "up_bias": jnp.zeros((*stack, out))}
        _put(part, (*path, "houlsby"), own)
    return Tuning(part, {})


def merge(params: Params, dtype: Any = None) -> Params:
    """Return overlaid parameters with every adapter folded into its layer, for use without its cost.

    What remains of a kind without its trained leaves (constants on a bare base) is dropped. There is no
    unmerging: in floating point `(W + D) - D` is not W, and the base is there as it was.

    Args:
      params: a base and what was laid over it.
      dtype: packed kernels become plain ones of this type, with or without an adapter (`quantize`); None
        leaves those without one packed.

    Raises:
      ValueError: for a kind that no linear layer computes, or an adapter on a packed kernel without `dtype`:
        packed again, it would lose what it has learnt.
    """
    return _merge(params, dtype, ())


def _merge(params: Any, dtype: Any, path: tuple[str, ...]) -> Any:
    if not isinstance(params, dict):
        return params
    plain = {
        name: _merge(sub, dtype, (*path, name)) for name, sub in params.items() if not _is_kind(params, name)
    }
    packed = is_packed(params.get("kernel"))
    if packed and dtype is not None:
        plain["kernel"] = dequantise(params["kernel"])
    for name, kind in KINDS.items():
        if _is_kind(params, name) and is_complete(name, params[name]):
            if kind.merge is None:
                raise ValueError(f"merge must get what a linear layer can compute; got {name}; overlay it")
            if packed and dtype is None:
                raise ValueError(
                    f"merge must be given a dtype where the kernel is packed; got {name} over "
                    f"{', '.join(params['kernel'])} at {_name(path)}; pass dtype=jnp.bfloat16, or overlay it"
                )
            layer = {leaf: plain[leaf] for leaf in ("kernel", "bias") if leaf in plain}
            plain |= {k: v.astype(layer[k].dtype) for k, v in kind.merge(params[name], layer).items()}
    if packed and dtype is not None:
        plain["kernel"] = plain["kernel"].astype(dtype)
    return plain


def stack_parts(parts: Sequence[Params]) -> Params:
    """Return the parts of many tasks as one, each leaf [tasks, ...]; the base stays once in memory.

        parts = stack_parts([translate, summarise])
        states = jax.vmap(learner.init, (0, None, 0))(keys, hparams, parts)           # trained together
        states, metrics = jax.vmap(learner.step, (0, 0, None))(states, batches, base)
        read = lambda row, task: lm.encode(overlay(base, take_part(parts, task)), row)
        hidden, _ = jax.vmap(read)(rows, tasks)                                       # mixed within one batch

    Args:
      parts: at least one, all of the same structure and shapes.

    Raises:
      ValueError: if they are not; it names the first leaf that differs.
    """
    forms = [
        {jax.tree_util.keystr(k): x.shape for k, x in jax.tree_util.tree_leaves_with_path(p)} for p in parts
    ]
    for index, form in enumerate(forms):
        if differing := sorted(k for k in forms[0].keys() | form.keys() if form.get(k) != forms[0].get(k)):
            name = differing[0]
            raise ValueError(
                f"parts must be of one form; got {name} of shape {forms[0].get(name)} in the first, "
                f"{form.get(name)} in number {index}"
            )
    if not forms:
        raise ValueError("parts must hold at least one; got none")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)


def take_part(parts: Params, task: Numeric) -> Params:
    """Return one task's part of `stack_parts`; NaN for a task that there is not.

    Tasks with prompts: read each once, by `init_prefix`, and stack those; a prompt itself would be read for
    every row.
    """
    return jax.tree.map(lambda x: x.at[task].get(mode="fill", fill_value=jnp.nan), parts)


def _is_kind(params: Params, name: str) -> bool:
    return name in KINDS and name in params and "kernel" in params


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _target(params: Params, spec: Spec, argument: str) -> dict[tuple[str, ...], Any]:
    """Return the kernels of the linear layers that a spec means, by their paths."""
    places = {"/".join(path): (path, kernel) for path, kernel in _linear_layers(params, ()).items()}
    chosen = _matching(tuple(places), spec, argument, "linear layers")
    return dict(place for name, place in places.items() if name in chosen)


def _linear_layers(params: Params, path: tuple[str, ...]) -> dict[tuple[str, ...], Any]:
    """Return the kernels, plain or packed, of all linear layers by their paths."""
    if not isinstance(params, dict):
        return {}
    if "kernel" in params:  # a scalar head's kernel is a vector
        return {path: params["kernel"]} if len(kernel_shape(params["kernel"])) > 1 else {}
    return {k: v for name, sub in params.items() for k, v in _linear_layers(sub, (*path, name)).items()}
