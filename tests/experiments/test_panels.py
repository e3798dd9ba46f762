"""Panels of several quantities."""

import numpy as np

from tests.experiments.loading import load

panels = load("panels")


def test_the_rest_of_the_grid_is_blank(monkeypatch):
    figures = []
    monkeypatch.setattr(panels.plots, "save_figure", lambda fig, path: figures.append(fig))
    curve = (np.arange(3), np.ones((3, 2)))
    quantities = {name: {"one": curve, "two": curve} for name in ("reward", "KL", "entropy")}
    panels.save_panels("nowhere.png", "steps", quantities, title="three", columns=2)
    assert [ax.axison for ax in figures[0].axes] == [True] * 3 + [False]
    assert [ax.get_ylabel() for ax in figures[0].axes[:3]] == list(quantities)


def test_long_names_leave_the_panels_their_width(monkeypatch):
    figures = []
    monkeypatch.setattr(panels.plots, "save_figure", lambda fig, path: figures.append(fig))
    curve = (np.arange(3), np.ones((3, 2)))
    named = lambda names: {name: curve for name in names}
    for long in (
        ("a curve", "another"),
        ("a curve with a name", "fine-tuned instead", "Bayes", "known tasks"),
    ):
        quantities = {"reward": named(long), "KL": named(("one", "two"))}
        panels.save_panels("nowhere.png", "steps", quantities, title="", columns=2)
        figures[-1].draw_without_rendering()
    widths = [[ax.get_position().width for ax in fig.axes] for fig in figures]
    assert np.allclose(widths[0], widths[1], rtol=0.05)
    assert widths[0][0] > 0.35
