import sys

import numpy as np
import pytest

from jaxrl_align.runtime import plots
from jaxrl_align.runtime.statistics import mean_interval


def test_curve_and_band_hold_the_mean_and_the_interval():
    _, ax = plots.figure("updates", "loss (nats)", title="fit")
    ys = np.random.default_rng(0).normal(size=(10, 4))
    plots.curve_with_interval(ax, np.arange(10), ys, "ours")
    mean, half_width = mean_interval(ys, axis=1)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), mean)
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx((mean - half_width).min())
    assert band.max() == pytest.approx((mean + half_width).max())
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("updates", "loss (nats)", "fit")
    assert ax.lines[0].get_label() == "ours" and ax.lines[0].get_color() == plots.COLORS[0]


def test_one_member_draws_a_line_without_a_warning(recwarn, tmp_path):
    fig, ax = plots.figure("updates", "loss (nats)")
    plots.curve_with_interval(ax, np.arange(3), np.ones((3, 1)), "one")
    plots.save_figure(fig, tmp_path / "a.png")
    assert not recwarn.list


def test_shapes_are_checked():
    _, ax = plots.figure("x", "y")
    with pytest.raises(ValueError, match=r"expected x \[n\] and ys \[n, members\], got \[3\] and \[4, 3\]"):
        plots.curve_with_interval(ax, np.arange(3), np.ones((4, 3)), "transposed")


def test_figure_is_written_whole_and_pyplot_is_left_alone(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    fig, _ = plots.figure("x", "y")
    path = tmp_path / "a.png"
    plots.save_figure(fig, path)
    assert path.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [path]
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"figures need matplotlib: pip install jaxrl-align\[plots\]"):
        plots.figure("x", "y")
