"""Figures in one style, which also grey print carries: curves differ in line and marker, not in colour alone.

matplotlib is an extra and is imported only when a figure is drawn.
"""

import itertools
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxrl_align.atomic import atomic_path
from jaxrl_align.runtime.statistics import mean_interval

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette (2008), which colour-blind readers tell apart, dark tones first."""
LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)))
MARKERS = "osD^vPX"
HATCHES = ("", "//", "..", "xx", "--", "++", "oo")
ROLES = {
    "PPO": "#0072B2",
    "RLHF": "#0072B2",
    "A2C": "#D55E00",
    "SFT": "#D55E00",
    "TRPO": "#009E73",
    "GRPO": "#009E73",
    "DPO": "#CC79A7",
    "LoRA": "#CC79A7",
    "REINFORCE": "#E69F00",
    "pre-trained": "#E69F00",
    "random": "#56B4E9",
    "full": "#000000",
}
"""The colour of what comes back in many figures, by the first word of its name."""
TOGETHER = 5
"""Curves with bands in one panel, at most; more get a panel each."""
_MARKS = 8

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
    style: Any = _STYLE | {"axes.prop_cycle": cycler(color=COLORS) + cycler(linestyle=LINES)}
    with rc_context(style):
        fig = Figure(figsize=size, layout="constrained")
        axes = fig.subplots(rows, columns, squeeze=False, **share)
    return fig, list(axes.flat)


def looks(names: Iterable[str], dashed: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return colour, line and marker of each curve, which differ in grey print too.

    Args:
      names: in the legend's order. The first name with a word of `ROLES` has its colour in every figure.
      dashed: names with a broken line, all others then have a whole one; None, every line its own.
    """
    names = list(names)
    first_words = [name.replace(",", " ").split(" ")[0] for name in names]
    roles = {
        n: ROLES.get(w)
        for i, (n, w) in enumerate(zip(names, first_words, strict=True))
        if w not in first_words[:i]
    }
    free = [color for color in COLORS if color not in roles.values()] or list(COLORS)
    found = {}
    for i, name in enumerate(names):
        line: Any = LINES[i % len(LINES)] if dashed is None else "--" if name in dashed else "-"
        color = roles.get(name) or free[sum(not roles.get(n) for n in names[:i]) % len(free)]
        found[name] = {"color": color, "linestyle": line, "marker": MARKERS[i % len(MARKERS)]}
    return found


def bar_look(i: int) -> dict[str, Any]:
    """Return colour and hatch of the i-th kind of bars, which have no line to tell them apart in grey."""
    return {"color": COLORS[i % len(COLORS)], "hatch": HATCHES[i % len(HATCHES)], "edgecolor": "white"}


def luminance(color: str) -> float:
    """Return how light a colour "#rrggbb" prints in grey, from 0 to 1 (the relative luminance of sRGB)."""
    shares = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255.0
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def curve_with_interval(
    ax: Any,
    x: ArrayLike,
    ys: ArrayLike,
    label: str,
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    **look: Any,
) -> None:
    """Draw the mean over members as a line and its 95% Student-t interval as a band.

    Args:
      ax: matplotlib axes.
      x: [n] positions.
      ys: [n, M] one column per member; with one member there is no band.
      label: the line's name in the legend.
      bounds: what the quantity can be at least and at most; no band is drawn beyond.
      look: of matplotlib's line, for example what `looks` returns.
    """
    x, ys = np.asarray(x), np.asarray(ys)
    if ys.ndim != 2 or x.shape != ys.shape[:1]:
        raise ValueError(f"expected x [n] and ys [n, members], got {list(x.shape)} and {list(ys.shape)}")
    mean, half_width = mean_interval(ys, axis=1)
    (line,) = ax.plot(x, mean, label=label, **look)
    low, high = np.clip([mean - half_width, mean + half_width], *bounds)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def save_curves(
    path: str | os.PathLike,
    x_label: str,
    y_label: str,
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str = "",
    bars: bool = False,
    dashed: Collection[str] | None = None,
    levels: Mapping[str, float] | None = None,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    **settings: Any,
) -> None:
    """Write a figure of curves, means over members with their 95% Student-t intervals, to `path`.

    The legend stands beside them, in the order in which they end. More than `TOGETHER` with bands get a panel
    each, in which the others are grey.

    Args:
      path: of the PNG.
      x_label: what lies along x, with its unit.
      y_label: what lies along y, with its unit.
      curves: name -> (positions [n], one column per member [n, M], or one line [n]), in the looks' order.
      title: what the figure shows.
      bars: draw each mean as a point with an error bar, for a few positions, instead of a line with a band.
      dashed: names of curves with a broken line; None, every curve has a line of its own.
      levels: name -> the height of a grey horizontal line to compare with, the first one dotted.
      bounds: what the quantity can be at least and at most; no interval is drawn beyond.
      settings: of matplotlib's `Axes.set`, for example `xscale="log"`.
    """
    look = looks(curves, dashed)
    apart = sum(np.ndim(ys) == 2 for _, ys in curves.values()) > TOGETHER and not bars
    columns = min(4, -(-len(curves) // 2)) if apart else 1
    rows = -(-len(curves) // columns) if apart else 1
    size = (2.7 * columns, 2.2 * rows + 0.6) if apart else (7.6, 4.0)
    fig, axes = panels(rows, columns, size=size, sharex=apart, sharey=apart)
    for i, ax in enumerate(axes):
        shown = list(curves)[i : i + 1] if apart else list(curves)
        if curves and not shown:
            _leave_blank(axes, i, columns)
            continue
        for name in sorted(curves, key=lambda name: name in shown):
            kind = look[name] if name in shown else {"color": "#bbbbbb", "linewidth": 0.7, "linestyle": "-"}
            draw_curve(ax, name, *curves[name], bars=bars, plain=name not in shown, bounds=bounds, **kind)
        for (name, level), line in zip((levels or {}).items(), itertools.cycle(LINES[3:])):
            ax.axhline(level, color="#777777", linestyle=line, label=name)
        ax.set(**settings)
        if "xticks" in settings:  # no name between them, where a logarithm has minor ones
            ax.xaxis.set_minor_formatter("")
        _shorten_ticks(ax, 3 if apart else 6)
        if apart:
            ax.set_title("".join(shown), fontsize=9)
            ax.tick_params(labelsize=8)
    fig.supxlabel(x_label, fontsize=11)
    fig.supylabel(y_label, fontsize=11)
    if apart:
        fig.suptitle(title, fontsize=12)
    else:
        axes[0].set_title(title)
        name_beside(fig, axes[0])
    save_figure(fig, path)


def draw_curve(
    ax: Any,
    name: str,
    x: ArrayLike,
    ys: ArrayLike,
    *,
    bars: bool = False,
    plain: bool = False,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    **look: Any,
) -> None:
    """Draw one curve of `save_curves`; a plain one has neither interval nor name."""
    x, ys = np.asarray(x), np.asarray(ys)
    mean, half_width = mean_interval(ys, axis=1) if ys.ndim == 2 else (ys, np.zeros(ys.shape))
    marks = {"markersize": 4, "markevery": max(1, len(x) // _MARKS)}
    if plain:
        ax.plot(x, mean, **look)
    elif ys.ndim == 1:
        ax.plot(x, ys, label=name, **marks, **look)
    elif bars:
        ends = np.abs(np.clip([mean - half_width, mean + half_width], *bounds) - mean)
        ax.errorbar(x, mean, ends, markersize=4, capsize=3, label=name, **look)
    else:
        curve_with_interval(ax, x, ys, name, bounds=bounds, **marks, **look)


def _leave_blank(axes: Sequence[Any], i: int, columns: int) -> None:
    """Show nothing in the i-th axes of a grid; those above it name their positions themselves."""
    axes[i].set_axis_off()
    axes[i - columns].tick_params(labelbottom=True)


def _shorten_ticks(ax: Any, most: int) -> None:
    """Write large positions along a linear x as 50k, and few of them; within a decade of a log y, 2.2."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    if ax.get_xscale() == "linear" and ax.get_xlim()[1] >= 10_000:
        ax.xaxis.set_major_locator(MaxNLocator(most))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    low, high = ax.get_ylim()
    if ax.get_yscale() == "log" and high < 10 * low:
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")


def name_beside(fig: Any, ax: Any) -> None:
    """Put the legend beside the axes, in the order of the curves' right ends."""
    handles, names = ax.get_legend_handles_labels()
    ends = [float(np.asarray(getattr(h, "lines", [h])[0].get_ydata())[-1]) for h in handles]
    order = sorted(range(len(names)), key=lambda i: -ends[i] if np.isfinite(ends[i]) else np.inf)
    if names:
        fig.legend(
            [handles[i] for i in order],
            [names[i] for i in order],
            loc="outside right upper",
            fontsize=8,
            frameon=False,
            handlelength=3.5,
        )


def save_figure(fig: Any, path: str | os.PathLike) -> None:
    """Write the figure to `path` as PNG: the old file or the whole new one, never half of it."""
    with atomic_path(path) as temporary:
        fig.savefig(temporary, format="png", dpi=130)
