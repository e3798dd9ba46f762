"""Parts of a page of HTML that needs no other file; every text in them is escaped here."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxrl_align.runtime.statistics import mean_interval

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222 }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .9rem }
td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #eee }
td { white-space: pre-wrap; overflow-wrap: anywhere; max-width: 40rem }
img { max-width: 100%; height: auto } figure { margin: 1rem 0 } figcaption { font-size: .85rem; color: #555 }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem }
.curves figure { margin: 0 } svg { width: 100%; height: auto; background: #fafafa }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What the page may load: nothing but what is in it, and no script at all."""
WIDTH, HEIGHT, POINTS = 240, 100, 240
"""Of a curve: its size, and its most points."""


def page(title: str, parts: Iterable[str]) -> str:
    """Return the whole page."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def escape(text: object) -> str:
    """Return a text as HTML shows it, whatever stands in it."""
    return html.escape(str(text), quote=True)


def heading(text: str, level: int = 2) -> str:
    """Return a heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{escape(text)}</p>"


def table(rows: Sequence[Sequence[object]], *, head: bool = True) -> str:
    """Return a table, whose first row names the columns if `head`."""
    lines = []
    for i, row in enumerate(rows):
        tag = "th" if head and not i else "td"
        lines.append("<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def picture(path: Path, caption: str) -> str:
    """Return a PNG or GIF inside the page.

    Raises:
      OSError: it cannot be read.
    """
    kind, data = path.suffix[1:].lower(), base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escape(caption)}" src="data:image/{kind};base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def curve(name: str, values: np.ndarray) -> str:
    """Return a small figure of a metric [steps] or [steps, M]: the mean with its 95% t interval.

    Its caption says the smallest and the largest mean of all steps, and the last; the line has at most
    `POINTS` of them.
    """
    values = values if values.ndim == 2 else values[:, None]
    mean, half = mean_interval(values, axis=1)
    known = np.flatnonzero(np.isfinite(mean))
    if not len(known):
        return f"<figure><figcaption>{escape(name)}: never finite</figcaption></figure>"
    words = f"{name}: {mean[known[-1]]:.4g} after {known[-1] + 1} steps; "
    words += f"from {mean[known].min():.4g} to {mean[known].max():.4g}"
    kept = known[np.unique(np.linspace(0, len(known) - 1, min(POINTS, len(known))).round().astype(int))]
    steps, mean, half = kept + 1, mean[kept], np.where(np.isfinite(half), half, 0.0)[kept]
    low, high = float((mean - half).min()), float((mean + half).max())
    x = WIDTH * (steps - 1) / max(len(values) - 1, 1)
    place = lambda y: HEIGHT - 4 - (HEIGHT - 8) * (y - low) / ((high - low) or 1.0)
    line = _points(x, place(mean))
    band = f"{_points(x, place(mean + half))} {_points(x[::-1], place((mean - half)[::-1]))}"
    shapes = f'<polygon points="{band}" fill="#0072B2" opacity="0.2"/>'
    shapes += f'<polyline points="{line}" fill="none" stroke="#0072B2" stroke-width="1.5"/>'
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">{shapes}</svg>'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def _points(x: np.ndarray, y: np.ndarray) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
