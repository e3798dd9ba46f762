"""Arguments that cannot be: refused in one line, before anything is compiled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RANGES = {
    "learning_rate": (0.0, np.inf),
    "gamma": (0.0, 1.0),
    "gae_lambda": (0.0, 1.0),
    "clip": (0.0, np.inf),
    "clip_high": (0.0, np.inf),
    "value_clip": (0.0, np.inf),
    "label_smoothing": (0.0, 1.0),
    "max_kl": (0.0, np.inf),
    "kl_target": (0.0, np.inf),
    "epsilon_start": (0.0, 1.0),
    "epsilon_end": (0.0, 1.0),
}
"""The least and the most that a hyperparameter of this name may be, whoever declares it. An infinite clip
clips nothing."""
OURS = {
    "beta": (0.0, np.inf),
    "label_smoothing": (0.0, 0.5),
    "margin": (0.0, np.inf),
    "target_weight": (0.0, np.inf),
    "desirable_weight": (0.0, np.inf),
    "undesirable_weight": (0.0, np.inf),
    "centring": (0.0, np.inf),
    "value_coef": (0.0, np.inf),
    "pretraining_coef": (0.0, np.inf),
    "kl_coef": (0.0, np.inf),
    "kl_horizon": (0.0, np.inf),
    "epsilon": (0.0, 1.0),
    "target_rate": (0.0, 1.0),
    "alpha": (0.0, np.inf),
    "decay": (0.0, np.inf),
    "damping": (0.0, np.inf),
    "annotator_temperature": (0.0, np.inf),
}
"""Likewise in the package's own hyperparameters; in a user's these names may mean something else. A beta of 0
leaves ORPO the imitation; the labels that are smoothed are those of preferences."""
ABOVE_0 = {
    "temperature": "1 leaves the policy as it is",
    "kl_target": "at 0 no update is small enough; 0.01 is usual of PPO, 6 of RLHF",
}
"""Likewise what must be above 0, and what to take."""
BELOW = ("label_smoothing",)
"""Of these in `OURS` the most is excluded: at 0.5 a label says nothing, above it the opposite."""


def check_counts(**counts: int) -> None:
    """Raise ValueError for a count that is no whole number of at least 1."""
    for name, count in counts.items():
        if not (isinstance(count, int | np.integer) and count >= 1):
            raise ValueError(f"{name} must be a whole number of at least 1; got {count!r}")


def check_divides(count: int, total: int, count_name: str, total_name: str) -> None:
    """Raise ValueError unless `count` divides `total`, naming divisors that would do."""
    if count < 1 or total % count:
        divisors = [d for d in range(1, total + 1) if total % d == 0]
        near = sorted(sorted(divisors, key=lambda d: (abs(d - count), d))[:2])
        options = " or ".join(str(d) for d in near)
        raise ValueError(
            f"{count_name} must divide {total_name}; got {total_name}={total}, {count_name}={count}; "
            f"try {count_name}={options}"
        )


def check_tokens(name: str, tokens: Any, vocab_size: int) -> None:
    """Raise ValueError for a token outside the vocabulary; tokens that are traced have no values yet."""
    if isinstance(tokens, jax.core.Tracer):
        return
    found = np.asarray(tokens)
    if not ((found >= 0) & (found < vocab_size)).all():
        raise ValueError(
            f"{name} must be from 0 to {vocab_size - 1}; got {found.min()} to {found.max()}; was another "
            "tokenizer used?"
        )


def check_hparams(hparams: Any) -> None:
    """Raise ValueError for hparams that are no NamedTuple of numbers, or a number that cannot be.

    That is a nan, one out of `RANGES` or, in the package's own, `OURS`, a 0 in `ABOVE_0`. What hparams are
    composed of is checked likewise.

    Hyperparameters that are traced have no values yet; `train_members` checks them before it compiles.
    """
    if isinstance(hparams, type):
        name = hparams.__name__
        raise ValueError(f"hparams must be an object; got the class {name}; write {name}()")
    if isinstance(hparams, (dict, int, float)) or hparams is None:
        raise ValueError(
            f"hparams must be a NamedTuple such as PPOHParams; got {type(hparams).__name__}; "
            f"pass the learner's own, for example rl.PPOHParams(learning_rate=1e-3)"
        )
    for path, value in jax.tree_util.tree_leaves_with_path(hparams):
        if isinstance(value, jax.core.Tracer):
            continue
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if np.asarray(value).dtype.kind in "OSU":
            got = value if isinstance(value, str) else type(value).__name__
            raise ValueError(
                f"{name} must be a number; got {got!r}; for a learning rate that falls, give the "
                f"learner total_steps="
            )
        if np.isnan(value).any():
            raise ValueError(f"{name} must be a number; got nan; correct the hyperparameters")
    _check_ranges(hparams, "")


def _check_ranges(hparams: Any, prefix: str) -> None:
    """Raise ValueError for a number out of range in hparams, or in those that they are composed of."""
    own = type(hparams).__module__.startswith(f"{__package__}.")
    for name, (low, high) in (RANGES | OURS if own else RANGES).items():
        value = getattr(hparams, name, None)
        if value is None or isinstance(value, jax.core.Tracer):
            continue
        value, below = np.asarray(value), own and name in BELOW
        if not np.all((low <= value) & (value < high if below else value <= high)):
            most = f"below {high:g}" if below else f"{high:g}"
            wanted = "at least 0" if high == np.inf else f"from {low:g} to {most}"
            raise ValueError(f"{prefix}{name} must be {wanted}; got {value}; correct the hyperparameters")
    for name, remedy in ABOVE_0.items():
        value = getattr(hparams, name, None)
        if value is None or isinstance(value, jax.core.Tracer):
            continue
        if not np.all(np.asarray(value) > 0):
            raise ValueError(f"{prefix}{name} must be above 0; got {value}; {remedy}")
    for name in getattr(hparams, "_fields", ()):
        if hasattr(inner := getattr(hparams, name), "_fields"):
            _check_ranges(inner, f"{prefix}{name}.")


def check_support(support: Any) -> None:
    """Raise ValueError unless C51's support is [K >= 2], rising in even steps; one that is traced passes."""
    if isinstance(support, jax.core.Tracer):
        return
    atoms = np.asarray(support, np.float64)
    remedy = "take nets.support_between(low, high, atoms)"
    if atoms.ndim != 1 or len(atoms) < 2:
        raise ValueError(f"support must be [K] returns, K >= 2; got shape {atoms.shape}; {remedy}")
    kind = jnp.asarray(support).dtype
    half = jnp.issubdtype(kind, jnp.floating) and kind.itemsize < 4
    eps = float(jnp.finfo(kind if half else jnp.float32).eps)
    steps, rounding = np.diff(atoms), 8 * eps * np.abs(atoms).max()
    if not (steps.min() > 0 and np.ptp(steps) <= 1e-3 * steps.mean() + rounding):
        raise ValueError(
            f"support must rise in even steps; got steps from {steps.min():g} to {steps.max():g}; {remedy}"
        )


def refuse(**unused: Any) -> None:
    """Raise ValueError for an argument of `step` that a learner has no use for."""
    for name, value in unused.items():
        if value is not None:
            raise ValueError(
                f"this learner uses no {name}; got one of type {type(value).__name__}; leave it out"
            )
