"""What mkdocs calls while it builds the site: equations as MathML, and the notebook as a page."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))

from equations import to_mathml, with_equations  # noqa: E402

NOTEBOOK = Path(__file__).parents[1] / "tutorials" / "tour.ipynb"


class Equations(griffe.Extension):
    """Docstrings with their equations as MathML."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of a module, class or function once it is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = with_equations(obj.docstring.value)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return a page's text with what is made for the site alone."""
    if page.file.src_uri == "losses.md":
        return with_table_equations(markdown)
    if page.file.src_uri == "tutorials/tour.md":
        return markdown + notebook_markdown(NOTEBOOK)
    return markdown


def with_table_equations(markdown: str) -> str:
    """Return the table of losses with the third column as MathML."""

    def row(line: str) -> str:
        cells = re.split(r"(?<!\\)\|", line)
        if len(cells) < 5 or "`" not in cells[3]:
            return line
        math = re.sub(r"`([^`]+)`", lambda code: to_mathml(code[1].replace(r"\|", "|")), cells[3])
        return "|".join([*cells[:3], math.replace("|", "&#124;"), *cells[4:]])

    return "\n".join(row(line) if line.startswith("|") else line for line in markdown.splitlines())


def notebook_markdown(path: Path) -> str:
    """Return a notebook's cells as Markdown."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    code = [cell["cell_type"] == "code" for cell in cells]
    return "\n\n".join(
        f"```python\n{text}\n```" if is_code else text for text, is_code in zip(texts, code, strict=True)
    )
