"""Figures in one readable style; matplotlib is an extra and is imported only when a figure is drawn."""

import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxrl_align.atomic import atomic_path
from jaxrl_align.runtime.statistics import mean_interval

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette (2008), which colour-blind readers tell apart, dark tones first."""

RETURN_AXES = ("environment steps per seed", "return, last 100 episodes")
"""Labels of x and y of a learning curve."""

_STYLE = {
    "figure.dpi": 130,
    "savefig.dpi": 130,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
}


def figure(x_label: str, y_label: str, *, title: str = "") -> tuple[Any, Any]:
    """Return a new matplotlib `(figure, axes)` in the library's style.

    The figure belongs to no window and to no global state, so it needs no closing and leaves pyplot alone.

    Args:
      x_label: what lies along x, with its unit.
      y_label: what lies along y, with its unit.
      title: what the figure shows.

    Raises:
      ImportError: matplotlib is not installed.
    """
    fig, (ax,) = panels(1, 1, size=(6.4, 4.0))
    ax.set(xlabel=x_label, ylabel=y_label, title=title)
    return fig, ax


def panels(rows: int, columns: int, *, size: tuple[float, float], **share: Any) -> tuple[Any, list[Any]]:
    """Return a new matplotlib figure as `figure` does, with several axes, row after row.

    Args:
      rows: of axes.
      columns: of axes.
      size: width and height of the whole, inches.
      share: matplotlib's `sharex` and `sharey`.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        from cycler import cycler
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install jaxrl-align[plots]") from error
    style: Any = _STYLE | {"axes.prop_cycle": cycler(color=COLORS)}
    with rc_context(style):
        fig = Figure(figsize=size, layout="constrained")
        axes = fig.subplots(rows, columns, squeeze=False, **share)
    return fig, list(axes.flat)


def curve_with_interval(ax: Any, x: ArrayLike, ys: ArrayLike, label: str) -> None:
    """Draw the mean over members as a line and its 95% Student-t interval as a band.

    Args:
      ax: matplotlib axes.
      x: [n] positions.
      ys: [n, M] one column per member; with one member there is no band.
      label: the line's name in the legend.
    """
    x, ys = np.asarray(x), np.asarray(ys)
    if ys.ndim != 2 or x.shape != ys.shape[:1]:
        raise ValueError(f"expected x [n] and ys [n, members], got {list(x.shape)} and {list(ys.shape)}")
    mean, half_width = mean_interval(ys, axis=1)
    (line,) = ax.plot(x, mean, label=label)
    ax.fill_between(x, mean - half_width, mean + half_width, color=line.get_color(), alpha=0.2, linewidth=0)


def save_curves(
    path: str | os.PathLike,
    x_label: str,
    y_label: str,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str = "",
    bars: bool = False,
    dashed: Collection[str] = (),
    levels: Mapping[str, float] | None = None,
    legend: str = "best",
    **settings: Any,
) -> None:
    """Write a figure of curves, means over members with their 95% Student-t intervals, to `path`.

    Args:
      path: of the PNG.
      x_label: what lies along x, with its unit.
      y_label: what lies along y, with its unit.
      curves: name -> (positions [n], one column per member [n, M], or one line [n]), in the legend's order.
      title: what the figure shows.
      bars: draw each mean as a point with an error bar, for a few positions, instead of a line with a band.
      dashed: names of curves to dash.
      levels: name -> the height of a dotted horizontal line to compare with.
      legend: where matplotlib puts it, for example "lower right".
      settings: of matplotlib's `Axes.set`, for example `xscale="log"`.
    """
    fig, ax = figure(x_label, y_label, title=title)
    for name, (x, ys) in curves.items():
        first = len(ax.lines)  # error bars add lines of their own behind the curve
        if np.ndim(ys) == 1:
            ax.plot(x, ys, label=name)
        elif bars:
            mean, half_width = mean_interval(ys, axis=1)
            ax.errorbar(x, mean, half_width, marker="o", markersize=4, capsize=3, label=name)
        else:
            curve_with_interval(ax, x, ys, name)
        if name in dashed:
            ax.lines[first].set_linestyle("--")
    for name, level in (levels or {}).items():
        ax.axhline(level, color="#777777", linestyle=":", label=name)
    ax.set(**settings)
    ax.legend(loc=legend, fontsize=7 if len(curves) > 6 else None)
    save_figure(fig, path)


def save_figure(fig: Any, path: str | os.PathLike) -> None:
    """Write the figure to `path` as PNG: the old file or the whole new one, never half of it."""
    with atomic_path(path) as temporary:
        fig.savefig(temporary, format="png", dpi=130)
