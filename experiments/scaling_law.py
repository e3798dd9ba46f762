"""A law of loss, `E + A / N^alpha + B / D^beta`, its fit to a table of losses, and the bootstrap of that."""

from typing import NamedTuple

import numpy as np

from jaxrl_align.runtime import Interval, t_interval

EXPONENTS = np.arange(0.02, 1.51, 0.02)
"""That are tried for weights and tokens alike."""


class Law(NamedTuple):
    """`offset + size_factor N^-size_exponent + token_factor D^-token_exponent`, each [draws]."""

    offset: np.ndarray
    size_factor: np.ndarray
    size_exponent: np.ndarray
    token_factor: np.ndarray
    token_exponent: np.ndarray


def predict(law: Law, sizes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the losses [draws, cells] that laws say."""
    of = lambda factor, exponent, x: factor[:, None] * x[None] ** -exponent[:, None]
    return (
        law.offset[:, None]
        + of(law.size_factor, law.size_exponent, sizes)
        + of(law.token_factor, law.token_exponent, tokens)
    )


def fit_law(sizes: np.ndarray, tokens: np.ndarray, losses: np.ndarray, weights: np.ndarray) -> Law:
    """Fit laws by least squares: every pair of `EXPONENTS`, for which the three factors are linear.

    No factor may be negative; where the offset would be, it is 0.

    Args:
      sizes: [cells].
      tokens: [cells].
      losses: [draws, cells].
      weights: [draws, cells], at least 0.
    """
    alpha, beta = (x.ravel() for x in np.meshgrid(EXPONENTS, EXPONENTS, indexing="ij"))
    scale = [np.exp(np.log(x).mean()) for x in (sizes, tokens)]
    columns = [np.ones((len(alpha), len(sizes)))]
    columns += [(x / s) ** -e[:, None] for x, s, e in zip((sizes, tokens), scale, (alpha, beta), strict=True)]
    design = np.stack(columns, -1)
    found = []
    for loss, weight in zip(losses, weights, strict=True):
        fits = [_least_squares(design[..., skip:], loss, weight) for skip in (0, 1)]
        offset = np.pad(fits[1][0], ((0, 0), (1, 0)))
        free = (fits[0][0] >= 0).all(1)
        factors = np.where(free[:, None], fits[0][0], offset)
        error = np.where(free, fits[0][1], fits[1][1])
        best = np.where((factors >= 0).all(1), error, np.inf).argmin()
        e, a, b = factors[best]
        found.append((e, a * scale[0] ** alpha[best], alpha[best], b * scale[1] ** beta[best], beta[best]))
    return Law(*np.array(found).T)


def _least_squares(design: np.ndarray, loss: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients [pairs, columns] and errors [pairs], of a design [pairs, cells, columns]."""
    weighted = design * weight[None, :, None]
    normal = np.swapaxes(weighted, 1, 2) @ design
    right = np.einsum("pck,c->pk", weighted, loss)
    factors = np.linalg.solve(normal + 1e-12 * np.eye(design.shape[-1]), right[..., None])[..., 0]
    residual = loss - np.einsum("pck,pk->pc", design, factors)
    return factors, (weight * residual**2).sum(1)


def resample(losses: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Return draws of cells, and of the runs within: mean losses and weights, [draws, cells] each.

    Args:
      losses: [cells, M].
      draws: how many.
    """
    random = np.random.default_rng(0)
    cells, members = losses.shape
    runs = random.integers(members, size=(draws, cells, members))
    means = np.take_along_axis(losses[None], runs, axis=2).mean(2)
    return means, random.multinomial(cells, np.full(cells, 1 / cells), draws).astype(float)


def bootstrap_law(
    sizes: np.ndarray, tokens: np.ndarray, losses: np.ndarray, draws: int
) -> dict[str, Interval]:
    """Return offset and exponents of a fit to `losses` [cells, M] with their bootstrap intervals."""
    law = fit_law(sizes, tokens, losses.mean(1)[None], np.ones((1, len(sizes))))
    drawn = fit_law(sizes, tokens, *resample(losses, draws))
    names = {"size_exponent": "alpha", "token_exponent": "beta", "offset": "offset [nats]"}
    found = {}
    for field, name in names.items():
        low, high = np.percentile(getattr(drawn, field), [2.5, 97.5])
        found[name] = Interval(float(getattr(law, field)[0]), float(low), float(high), "bootstrap")
    return found


def slopes(x: np.ndarray, losses: np.ndarray) -> Interval:
    """Return minus the slope of log loss against log x, of `losses` [n, M]: over seeds, Student's t."""
    log_x = np.log(x) - np.log(x).mean()
    return t_interval(-(log_x @ np.log(losses)) / (log_x @ log_x))


def cells_of(sizes: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights and the tokens of every cell, [widths x tokens] each, tokens fastest."""
    first, second = np.meshgrid(np.asarray(sizes, float), np.asarray(tokens, float), indexing="ij")
    return first.ravel(), second.ravel()


def extrapolation_error(losses: np.ndarray, sizes: np.ndarray, tokens: np.ndarray) -> float:
    """Return the largest relative error on the largest width of a law fitted to the others."""
    mean = losses.mean(2)
    law = fit_law(*cells_of(sizes[:-1], tokens), mean[:-1].reshape(1, -1), np.ones((1, mean[:-1].size)))
    told = predict(law, *cells_of(sizes[-1:], tokens))[0]
    return float(np.abs(told / mean[-1] - 1).max())


def fit_error(losses: np.ndarray, sizes: np.ndarray, tokens: np.ndarray) -> float:
    """Return the largest relative error of a law fitted to all cells."""
    mean = losses.mean(2).ravel()
    law = fit_law(*cells_of(sizes, tokens), mean[None], np.ones((1, len(mean))))
    return float(np.abs(predict(law, *cells_of(sizes, tokens))[0] / mean - 1).max())


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("scaling")
