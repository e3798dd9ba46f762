"""What 4 bits cost: the error of the weights, the loss of the model, and what LoRA makes of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from peft_task import Base, make_accuracy, make_task
from peft_ways import lora, qlora, tune

from jaxrl_align.data.corpora import python_topics
from jaxrl_align.evaluate.scoring.likelihood import make_scorer
from jaxrl_align.nets.quantize import dequantise, is_packed, quantise, quantise_params
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.pretrain.lm import make_text_loss, sample_rows, sample_windows
from jaxrl_align.runtime.statistics import mean_interval
from jaxrl_align.types import Params, Sampler

PACKINGS = {
    "NF4": ("nf4", False),
    "NF4 + DQ": ("nf4", True),
    "FP4": ("fp4", False),
    "Int4": ("int4", False),
    "Int8": ("int8", False),
}
"""Kind, and whether the scales are quantised too."""


class Equivalence(NamedTuple):
    """Two one-sided t tests of paired differences against a margin."""

    mean: float
    half_width: float
    """Of the 95% interval."""
    margin: float
    p: float
    """The larger of the two tests' p values; below .05 the means are equivalent within the margin."""


def equivalence(differences: ArrayLike, margin: float) -> Equivalence:
    """Test that the mean of paired differences lies within (-margin, margin) (Schuirmann 1987).

    Args:
      differences: [M], at least two, one for each seed.
      margin: what would still be called equal; positive.
    """
    x = np.asarray(differences, float)
    if x.ndim != 1 or len(x) < 2 or margin <= 0:
        raise ValueError(f"expected differences [M >= 2] and a positive margin; got {x.shape}, {margin}")
    mean, half_width = mean_interval(x)
    error = max(x.std(ddof=1) / len(x) ** 0.5, np.finfo(float).tiny)
    p = max(_upper_tail((sign * mean + margin) / error, len(x) - 1) for sign in (-1, 1))
    return Equivalence(float(mean), float(half_width), margin, p)


def _upper_tail(t: float, degrees: int) -> float:
    """Return P(T > t) of Student's T: half of the regularised incomplete beta function, mirrored at 0."""
    root = degrees**0.5
    share = (root / np.hypot(root, t)) ** 2  # degrees / (degrees + t * t), whose square may overflow
    half = 0.5 * float(jax.scipy.special.betainc(degrees / 2, 0.5, share))
    return half if t > 0 else 1 - half


def relative_error(kernel: jax.Array, kind: str, double: bool) -> jax.Array:
    """Return the root mean square error of kernels [..., in, out] in units of their deviations, [...]."""
    error = dequantise(quantise(kernel, kind, double=double)) - kernel
    return jnp.sqrt(jnp.mean(error**2, (-2, -1))) / jnp.std(kernel, (-2, -1))


def gaussian_errors(size: int = 1024) -> dict[str, float]:
    """Return each packing's error on weights drawn from N(0, 1), in units of sigma."""
    kernel = jax.random.normal(jax.random.key(0), (size, size))
    return {name: float(relative_error(kernel, *how)) for name, how in PACKINGS.items()}


def kernel_errors(params: Params) -> dict[str, float]:
    """Return each packing's mean error over all kernels of the blocks, every layer's apart."""
    kernels = [
        layer["kernel"]
        for layer in params["layers"].values()
        if isinstance(layer, dict) and "kernel" in layer
    ]
    if any(map(is_packed, kernels)):
        raise ValueError("params must have plain kernels to be compared with packed ones; load them plain")
    mean = lambda how: np.mean([np.mean(relative_error(kernel, *how)) for kernel in kernels])
    return {name: float(mean(how)) for name, how in PACKINGS.items()}


def text_losses(base: Base, *, length: int) -> dict[str, np.ndarray]:
    """Return the loss [windows] in nats a token on the held-out text, plain and under every packing."""
    count = len(base.held_out) // length
    rows = base.held_out[: count * length].reshape(count, length)
    score = make_scorer(base.lm, batch_size=8)
    found = {}
    for name, how in {"plain": None, **PACKINGS}.items():
        params = base.params if how is None else quantise_params(base.params, how[0], double=how[1])
        found[name] = -score(params, rows.tolist()) / (length - 1)
    return found


class Contest(NamedTuple):
    """On what LoRA over plain and over packed kernels are compared."""

    sample: Sampler
    measure: Any
    """`lm -> (params -> [2])`, on validation and on test data."""
    margin: float
    sign: int
    """1 where more is better."""


def text_contest(base: Base, *, batch_size: int, length: int, num_tokens: int) -> Contest:
    """Adapt the model to CPython's reference: nats a token on two parts of it that are not read."""
    tokens = np.asarray(base.tokenizer.encode(" ".join(python_topics().split())), np.int32)
    aside = np.split(tokens[-2 * num_tokens :], 2)
    sample = sample_windows(jnp.asarray(tokens[: -2 * num_tokens]), batch_size=batch_size, length=length)

    def measure(lm: LanguageModel) -> Any:
        losses = [make_text_loss(lm, part, length=length, batch_size=4) for part in aside]
        return lambda params: jnp.stack([nats / n for nats, n in (loss(params) for loss in losses)])

    return Contest(sample, measure, 0.02, -1)


def label_contest(base: Base, *, batch_size: int, length: int, rows: tuple[int, int]) -> Contest:
    """Tune the model to TREC as `peft.py` does: accuracy in per cent."""
    task = make_task("trec", base.tokenizer, length, rows)

    def measure(lm: LanguageModel) -> Any:
        accuracy = make_accuracy(lm, task.words)
        return lambda params: 100 * jnp.stack([accuracy(params, x) for x in (task.validation, task.test)])

    return Contest(sample_rows(task.train, batch_size=batch_size), measure, 2.0, 1)


def hold(
    base: Base,
    contest: Contest,
    *,
    rank: int,
    keys: chex.PRNGKey,
    tuning: int,
    rates: Sequence[float],
    steps: int,
) -> dict[str, Any]:
    """Train both on the same batches from the same adapters, each at a rate that other members choose.

    Args:
      base: what is tuned.
      contest: on what.
      rank: of the adapters.
      keys: [M + tuning] of the members.
      tuning: how many of them, the last, choose each way's rate, by their validation.
      rates: to choose from.
      steps: of each member.

    Returns:
      For each way `validation` [R, tuning], `test` [R, M] and `rate`, an index.
    """
    if not 1 <= tuning < len(keys):
        raise ValueError(
            f"tuning must leave members to report of {len(keys)}, and be 1 or more; got {tuning}"
        )
    found = {}
    for name, way in {"LoRA": lora(rank), "QLoRA": qlora(rank)}.items():
        validation, test, _ = tune(
            base, way, contest.sample, contest.measure, keys=keys, rates=rates, steps=steps
        )
        validation, test = np.asarray(validation)[:, -tuning:], np.asarray(test)[:, :-tuning]
        mean = np.where(np.isfinite(validation), contest.sign * validation, -np.inf).mean(1)
        found[name] = {"validation": validation, "test": test, "rate": int(mean.argmax())}
    return found


def judge(found: dict[str, Any], margin: float) -> Equivalence:
    """Return the test of QLoRA's results less LoRA's, each at its own rate."""
    ours, theirs = (np.array(found[name]["test"])[found[name]["rate"]] for name in ("QLoRA", "LoRA"))
    return equivalence(ours - theirs, margin)


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("qlora_memory")
