"""Tuning as an overlay: what is trained is a partial tree of parameters laid over a frozen base.

`overlay(base, part)` returns ordinary parameters, so whatever reads parameters (encoding, generation, scores,
probes) works with every way of tuning and depends on none. A part holds some of the base's own leaves
(`select`), or new leaves beside a linear layer's kernel, read by the kinds of `KINDS`:

    part, constants = init_lora(key, base, rank=8)
    base = overlay(base, constants)         # frozen: constants are never among the trained leaves
    hidden, _ = lm.encode(overlay(base, part), tokens)
"""

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.nets.kinds import KINDS, Spec, is_complete, match_names
from jaxrl_align.nets.quantize import dequantise, is_packed, kernel_shape
from jaxrl_align.types import Numeric, Params

ROWS = "rows"
"""A part's node whose entries, named by numbers, replace single rows of stacked leaves."""


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
        elif name != ROWS:
            raise ValueError(
                f"a part must fit its base; got {_name((*path, name))}, but the base has "
                f"{', '.join(sorted(base))} there; the kinds {', '.join(KINDS)} lie beside a kernel"
            )
    for row, own in part.get(ROWS, {}).items():  # into what the rest of the part has laid
        count = jax.tree.leaves(laid)[0].shape[0]
        if not row.isdecimal() or int(row) >= count:
            raise ValueError(
                f"a part must fit its base; got {_name((*path, ROWS, row))}, where the base has rows from 0 "
                f"to {count - 1}"
            )
        _lay(jax.eval_shape(lambda tree: jax.tree.map(lambda x: x[0], tree), laid), own, (*path, ROWS, row))
        laid = _set_row(laid, own, int(row))
    return laid


def _set_row(stacked: Any, tree: Any, row: int) -> Any:
    if not isinstance(tree, dict):
        return stacked.at[row].set(tree.astype(stacked.dtype))
    if missing := sorted(tree.keys() - stacked.keys()):
        raise ValueError(f"rows must be of leaves that the base has; got {missing}; give them to every layer")
    return stacked | {name: _set_row(stacked[name], sub, row) for name, sub in tree.items()}


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

    chosen = match_names(list_names(params, ()), spec, "spec", "leaves")
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


def with_dropout(params: Params, key: chex.PRNGKey) -> Params:
    """Return overlaid parameters as one row of a batch trains on them: adapters with a rate drop inputs.

    A rate is a constant of `init_lora`. Without one the parameters are returned as they are; without this
    call nothing is dropped.

    Args:
      params: a base, its constants, and what was laid over them.
      key: what is dropped is drawn from it; one a row, or all rows of a batch drop the same.
    """
    return _with_keys(params, key, "")


def without_dropout(params: Params) -> Params:
    """Return parameters, or constants alone, that `with_dropout` leaves as they are: no adapter has a rate.

    It is for objectives of training that judge held-out rows.
    """
    return _without_rates(params, "")


def _without_rates(params: Any, name: str) -> Any:
    if not isinstance(params, dict):
        return params
    dropped = ("dropout",) if name in KINDS else ()
    return {n: _without_rates(leaf, n) for n, leaf in params.items() if n not in dropped}


def _with_keys(params: Any, key: chex.PRNGKey, name: str) -> Any:
    if not isinstance(params, dict):
        return params
    if name in KINDS and "dropout" in params:
        return params | {"key": jax.random.split(key, params["dropout"].shape)}
    return {n: _with_keys(params[n], jax.random.fold_in(key, i), n) for i, n in enumerate(sorted(params))}


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
