"""Figures of several panels, one for each quantity, with error bars at a few places."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrl_align.runtime import plots
from jaxrl_align.runtime.statistics import mean_interval

Curves = Mapping[str, tuple[Any, Any]]
"""Name -> (positions [n], one column per member [n, M])."""


def draw_curves(
    ax: Any, curves: Curves, *, marks: int = 5, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> None:
    """Draw means over members, and their 95% t intervals as error bars at a few places, side by side.

    Args:
      ax: matplotlib axes.
      curves: up to as many as `plots.LINES`.
      marks: error bars of each curve.
      bounds: what the quantity can be at least and at most; no interval is drawn beyond.
    """
    look = plots.looks(curves)
    for i, (name, (x, ys)) in enumerate(curves.items()):
        x, (mean, half) = np.asarray(x), mean_interval(ys, axis=1)
        if len(x) <= marks:
            x = x + 0.008 * np.ptp(x) * (i - (len(curves) - 1) / 2)
        line = look[name].pop("linestyle")
        kind: dict[str, Any] = look[name] | {"markersize": 4}
        every = max(1, len(x) // marks)
        at = slice(min(i * every // len(curves), len(x) - 1) if len(x) > marks else 0, None, every)
        bars = np.clip([mean - half, mean + half], *bounds) - mean
        ax.plot(x, mean, linestyle=line, color=kind["color"], linewidth=1.3)
        ax.errorbar(x[at], mean[at], np.abs(bars[:, at]), linestyle="", capsize=2, **kind)
        ax.plot([], [], linestyle=line, label=name, **kind)


def save_panels(
    path: str | os.PathLike,
    x_label: str,
    panels: Mapping[str, Curves],
    *,
    title: str,
    columns: int = 2,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Write a figure with a panel for each quantity, and one legend where all have the same curves.

    Args:
      path: of the PNG.
      x_label: what lies along every x, with its unit.
      panels: the y label, with its unit -> curves.
      title: what the figure shows.
      columns: panels side by side.
      bounds: y label -> what the quantity can be at least and at most, where it is bounded.
    """
    rows = -(-len(panels) // columns)
    fig, axes = plots.panels(rows, columns, size=(4.6 * columns, 3.0 * rows + 0.6))
    fig.suptitle(title)
    shared = len(panels) > 1 and len({tuple(curves) for curves in panels.values()}) == 1
    for ax, (y_label, curves) in zip(axes, panels.items(), strict=False):
        draw_curves(ax, curves, bounds=(bounds or {}).get(y_label, (-np.inf, np.inf)))
        ax.set_xlabel(x_label, fontsize=10)
        ax.set_ylabel(y_label, fontsize=10)
        ax.tick_params(labelsize=9)
        if not shared:
            # No wider than the axes, which would become narrow for it.
            columns_of_names = len(curves) if sum(map(len, curves)) < 40 else 2
            above = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": columns_of_names}
            ax.legend(fontsize=8, frameon=False, columnspacing=1.0, borderpad=0.2, **above)
    for rest in axes[len(panels) :]:
        rest.set_axis_off()
    if shared:
        fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=len(curves), fontsize=9)
    plots.save_figure(fig, path)


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("four_updates")
