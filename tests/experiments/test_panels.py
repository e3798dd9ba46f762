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
