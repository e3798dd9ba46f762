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


def curves_of(*names, members=3):
    ys = np.random.default_rng(0).uniform(size=(len(names), 20, members))
    return {name: (np.arange(20), ys[i] + i) for i, name in enumerate(names)}


def drawn(monkeypatch, *args, **kwargs):
    """Return the figure that `save_curves` writes."""
    kept = []
    monkeypatch.setattr(plots, "save_figure", lambda fig, path: kept.append(fig))
    plots.save_curves("a.png", "x", "y", *args, **kwargs)
    return kept[0]


def test_curves_are_told_apart_in_grey():
    """Two looks differ in luminance by a fifth, or in line or marker."""
    names = ["PPO, clip", "PPO, no clip", "A2C", "TRPO", "other", "another", "third"]
    look = plots.looks(names)
    grey = {n: plots.luminance(kind["color"]) for n, kind in look.items()}
    for i, one in enumerate(names):
        for other in names[:i]:
            differ = [look[one][k] != look[other][k] for k in ("linestyle", "marker")]
            assert all(differ) or abs(grey[one] - grey[other]) > 0.2, (one, other)
    assert plots.luminance("#000000") == 0 and plots.luminance("#ffffff") == pytest.approx(1)
    assert plots.luminance("#00ff00") == pytest.approx(0.7152) and plots.luminance("#808080") < 0.25


def test_what_comes_back_has_its_colour_in_every_figure():
    one, other = plots.looks(["A2C", "x", "PPO"]), plots.looks(["PPO, clip", "y", "z", "A2C"])
    assert one["PPO"]["color"] == other["PPO, clip"]["color"] == plots.ROLES["PPO"]
    assert one["A2C"]["color"] == other["A2C"]["color"]
    colors = [kind["color"] for kind in other.values()]
    assert len(set(colors)) == 4
    clip, none = plots.looks(["PPO, clip", "PPO, no clip"]).values()
    assert clip["color"] == plots.ROLES["PPO"] != none["color"]
    lines = [kind["linestyle"] for kind in plots.looks(["a", "b", "c"], ["b"]).values()]
    assert lines == ["-", "--", "-"]


def test_the_legend_stands_beside_in_the_order_of_the_ends(monkeypatch):
    fig = drawn(monkeypatch, curves_of("low", "middle", "high"), levels={"floor": -1.0})
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == ["high", "middle", "low", "floor"]
    assert fig.axes[0].get_legend() is None


def test_levels_differ_in_their_dashes(monkeypatch):
    fig = drawn(monkeypatch, curves_of("a"), levels={"floor": -1.0, "ceiling": 9.0})
    looks = {line.get_label(): line for line in fig.axes[0].lines}
    assert looks["floor"].get_linestyle() == ":"
    assert looks["floor"]._dash_pattern != looks["ceiling"]._dash_pattern


def test_positions_that_are_asked_for_are_the_only_ones_with_names(monkeypatch):
    at = (0.05, 0.1, 0.2, 0.4)
    how = {"xscale": "log", "xticks": at, "xticklabels": at}
    (ax,) = drawn(monkeypatch, {"a": (np.array(at), np.zeros((4, 2)))}, **how).axes
    ax.figure.canvas.draw()
    texts = [text.get_text() for text in ax.get_xticklabels(which="both")]
    assert [text for text in texts if text] == ["0.05", "0.1", "0.2", "0.4"]


def test_many_steps_are_written_in_thousands(monkeypatch):
    (ax,) = drawn(monkeypatch, {"a": (np.arange(0, 150_001, 50_000), np.zeros((4, 2)))}).axes
    ax.figure.canvas.draw()
    texts = [text.get_text() for text in ax.get_xticklabels()]
    assert "50k" in texts or "60k" in texts, texts
    (ax,) = drawn(monkeypatch, {"a": (np.arange(4), np.zeros((4, 2)))}).axes
    ax.figure.canvas.draw()
    assert not any("k" in text.get_text() for text in ax.get_xticklabels())


@pytest.mark.parametrize(("highest", "plain"), [(3.0, True), (300.0, False)])
def test_losses_within_a_decade_are_written_without_powers(monkeypatch, highest, plain):
    curves = {"a": (np.arange(4), np.linspace(2.2, highest, 8).reshape(4, 2))}
    (ax,) = drawn(monkeypatch, curves, yscale="log").axes
    ax.figure.canvas.draw()
    texts = [text.get_text() for text in ax.get_yticklabels(which="both") if text.get_text()]
    assert any("^" in text for text in texts) != plain and len(texts) > 2, texts


def test_no_band_leaves_the_possible_range(monkeypatch):
    curves = {"a": (np.arange(2), np.array([[0.0, 1.0], [0.9, 1.0]]))}
    for bars in (False, True):
        (ax,) = drawn(monkeypatch, curves, bounds=(0.0, 1.0), bars=bars).axes
        if bars:
            ends = np.concatenate([segment[:, 1] for segment in ax.collections[0].get_segments()])
        else:
            ends = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert ends.min() == 0.0 and ends.max() == 1.0


def test_many_bands_get_a_panel_each(monkeypatch):
    names = [f"m{i}" for i in range(6)]
    assert len(drawn(monkeypatch, curves_of(*names[:5])).axes) == 1
    fig = drawn(monkeypatch, curves_of(*names), levels={"floor": 0.5})
    assert [ax.get_title() for ax in fig.axes] == names and not fig.legends
    for ax in fig.axes:
        assert len(ax.collections) == 1 and len(ax.lines) == 7  # its own band, all means and the level
        assert sum(line.get_color() == "#bbbbbb" for line in ax.lines) == 5
    assert len(drawn(monkeypatch, curves_of(*names), bars=True).axes) == 1
    assert len(drawn(monkeypatch, {n: (x, ys[:, 0]) for n, (x, ys) in curves_of(*names).items()}).axes) == 1


def test_the_rest_of_a_grid_is_blank_and_the_axes_above_name_their_positions(monkeypatch):
    fig = drawn(monkeypatch, curves_of(*[f"m{i}" for i in range(10)]))
    assert [ax.axison for ax in fig.axes] == [True] * 10 + [False] * 2
    named = [ax.xaxis.get_tick_params()["labelbottom"] for ax in fig.axes[:10]]
    assert named == [False] * 6 + [True] * 4


def test_bars_are_told_apart_by_their_hatches():
    looks = [plots.bar_look(i) for i in range(len(plots.HATCHES))]
    assert len({look["hatch"] for look in looks}) == len(looks) and looks[1]["color"] == plots.COLORS[1]
