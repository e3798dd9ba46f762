"""Parts of a model family's `config.json`: how entries become fields of `TransformerConfig`, and back.

A part reads a few entries as fields, and writes the same entries for a configuration. A missing entry has the
value that transformers gives it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from jaxrl_align.nets.transformer_config import RopeScaling, TransformerConfig
from jaxrl_align.typed import Within, fault_of, short

REQUIRED: Any = object()
_FILLED = {"key_value_heads": "kv_heads", "head_width": "depth", "feed_forward_width": "hidden"}


class Part(NamedTuple):
    """Entries of `config.json` and the fields that they hold."""

    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    """`entries -> fields`; a `ValueError` names the entry that is not supported."""
    write: Callable[[TransformerConfig], dict[str, Any]] = lambda config: {}
    """`config -> entries`; what it cannot hold shows when the entries are read back."""


def need(
    values: Mapping[str, Any], name: str, kind: type = int, default: Any = REQUIRED, least: int | None = None
) -> Any:
    """Return an entry of a type; an int becomes a float where one is wanted.

    Raises:
      ValueError: if it is null, missing without a default, of another type, or less than `least`.
    """
    got: Any = values.get(name, default)
    if got is None or got is REQUIRED:
        raise ValueError(f"{name} is missing or null; the configuration does not describe a model")
    wanted: Any = Annotated[int, Within(least)] if kind is int and least is not None else kind
    if fault := fault_of(got, wanted):
        raise ValueError(f"{name} {fault}; got {short(got)}")
    return float(got) if kind is float else got


def fixed(**fields: Any) -> Part:
    """Return fields that every model of a family has."""
    return Part(lambda values: fields)


def entry(
    key: str, field: str, default: Any = REQUIRED, kind: type = int, nullable: bool | None = None
) -> Part:
    """Return the part of one entry that holds one field.

    Args:
      key: its name in `config.json`.
      field: its name in `TransformerConfig`.
      default: what a missing entry means.
      kind: its type.
      nullable: null is a value of its own, the field's None; by default if `default` is None.
    """
    nullable = default is None if nullable is None else nullable

    def read(values: Mapping[str, Any]) -> dict[str, Any]:
        null = nullable and values.get(key, default) is None
        return {field: None if null else need(values, key, kind, default)}

    return Part(read, lambda config: {key: getattr(config, _FILLED.get(field, field))})


def expect(key: str, *known: Any) -> Part:
    """Return the part of an entry that must have one of the known values; the first is the default."""

    def read(values: Mapping[str, Any]) -> dict[str, Any]:
        if (got := values.get(key, known[0])) not in known:
            raise ValueError(
                f"{key} must be {' or '.join(map(str, known))}; got {short(got)}, which is not supported"
            )
        return {}

    return Part(read, lambda config: {} if known[0] is None else {key: known[0]})


def biases(**groups: Sequence[str]) -> Part:
    """Return the part of entries that each switch the biases of a group of linear layers, by default off."""

    def read(values: Mapping[str, Any]) -> dict[str, Any]:
        on = (names for key, names in groups.items() if need(values, key, bool, False))
        return {"biased": tuple(name for names in on for name in names)}

    return Part(read, lambda config: {key: names[0] in config.biased for key, names in groups.items()})


def windows(
    sliding: Callable[[Mapping[str, Any], int | None], Sequence[int]],
    default: int | None = 4096,
    *,
    switched: bool,
    numbered: bool = False,
    older: Callable[[Sequence[int], int], dict[str, Any]] = lambda layers, count: {},
) -> Part:
    """Return the part of `sliding_window` and of the layers that it holds for.

    Args:
      sliding: `(entries, window) -> layers` with the window, used where there are no `layer_types`.
      default: the window if the entry is missing.
      switched: there is no window unless `use_sliding_window` is true.
      numbered: transformers wants a number even where no layer has a window; the context is written there.
      older: `(layers, count) -> entries` that tell the layers with a window, of `count`, to older readers.
    """

    def read(values: Mapping[str, Any]) -> dict[str, Any]:
        count, window = need(values, "num_hidden_layers"), values.get("sliding_window", default)
        if switched and not need(values, "use_sliding_window", bool, False):
            window = None
        kinds = values.get("layer_types")
        known = ("full_attention", "sliding_attention")
        if kinds is None:
            layers = tuple(sliding(values, window))
        elif isinstance(kinds, list) and len(kinds) == count and all(kind in known for kind in kinds):
            layers = tuple(i for i, kind in enumerate(kinds) if kind == known[1])
        else:
            raise ValueError(
                f"layer_types must give each of {count} layers {' or '.join(known)}; got {short(kinds)}"
            )
        if not layers:
            return {"window": None, "window_layers": None}
        if window is None:
            switch = "use_sliding_window or " if switched else ""
            raise ValueError(f"layer_types has sliding_attention, but {switch}sliding_window is unset")
        window = need(values, "sliding_window", default=default)
        return {"window": window, "window_layers": None if len(layers) == count else layers}

    def write(config: TransformerConfig) -> dict[str, Any]:
        every = range(config.layers)
        layers = () if config.window is None else config.window_layers
        layers = tuple(every) if layers is None else layers
        kinds = [("sliding" if i in layers else "full") + "_attention" for i in every]
        switch = {"use_sliding_window": config.window is not None} if switched else {}
        window = config.context if numbered and config.window is None else config.window
        return switch | {"sliding_window": window, "layer_types": kinds} | older(layers, config.layers)

    return Part(read, write)


def rope(default: float = 10_000.0) -> Part:
    """Return the part of rotary positions that are the same in every layer, with a base's default.

    The older spelling alone is written, `rope_theta` and `rope_scaling`, which every version reads.
    """

    def read(values: Mapping[str, Any]) -> dict[str, Any]:
        theta, scaling = read_rope(values, values.get("rope_parameters") or {}, default)
        return {"rope_theta": theta, "rope_scaling": scaling}

    def write(config: TransformerConfig) -> dict[str, Any]:
        return {"rope_theta": config.rope_theta, "rope_scaling": write_scaling(config.rope_scaling)}

    return Part(read, write)


def read_rope(
    values: Mapping[str, Any],
    entries: Mapping[str, Any],
    default: float,
    base: str = "rope_theta",
    scaling: str = "rope_scaling",
) -> tuple[float, RopeScaling | None]:
    """Return base and scaling of rotary positions.

    Who adds `rope_scaling`, as model cards advise, leaves two spellings in a file: they must agree, but a
    `rope_parameters` that scales nothing gives way.

    Args:
      values: `config.json`.
      entries: what its `rope_parameters` say of these positions, as transformers 5 writes them.
      default: the base if nothing names one.
      base: the entry in which older versions write the base.
      scaling: likewise the scaling.

    Raises:
      ValueError: for a kind that is not supported, a missing entry, or two that contradict each other.
    """
    if nested := [name for name, value in entries.items() if isinstance(value, Mapping)]:
        raise ValueError(
            f"rope_parameters apart for {short(nested[0])[1:-1]} are not supported in this family"
        )
    newer = {"rope_type" if key == "type" else key: value for key, value in entries.items()}
    older = {"rope_type" if k == "type" else k: v for k, v in (values.get(scaling) or {}).items()}
    older |= {} if values.get(base) is None else {"rope_theta": values[base]}
    if newer.get("rope_type") == "default" and "rope_type" in older:
        del newer["rope_type"]
    if clash := [key for key in newer.keys() & older.keys() if newer[key] != older[key]]:
        key = min(clash)
        raise ValueError(
            f"rope_parameters must agree with {base} and {scaling}; got {key} {short(newer[key])} and "
            f"{short(older[key])}; remove the one that is wrong"
        )
    entries = older | newer
    theta = need(entries, "rope_theta", float, values.get(base, default))
    kind = entries.get("rope_type", "default")
    if entries.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ValueError("partial_rotary_factor must be 1; rotating a part of each head is not supported")
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(need(entries, "factor", float))
    if kind == "llama3":
        name = "original_max_position_embeddings"  # transformers reads the outer one first
        original = [x[name] for x in (values, entries) if x.get(name) is not None]
        if len(set(original)) > 1:
            raise ValueError(
                f"{name} must be the same at the top level and in the rope scaling; got {original[0]} and "
                f"{original[1]}; remove the one that is wrong"
            )
        return theta, RopeScaling(
            need(entries, "factor", float),
            need(entries, "low_freq_factor", float),
            need(entries, "high_freq_factor", float),
            original[0] if original else values.get("max_position_embeddings"),
        )
    raise ValueError(
        f"rope_type must be one of default, linear, llama3; got {short(kind)}, which is not supported"
    )


def write_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """Return the `rope_scaling` of a configuration."""
    if scaling is None:
        return None
    if scaling.low is None:
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.original_context,
    }
