"""The equations of docstrings and tables, which are plain text, as MathML: browsers show it without a script.

In a docstring an equation is an indented block that is no Python; `-sum_a p_a log p_a,   p = softmax(logits)`
becomes what TeX writes as `-\\sum_a p_a \\log p_a, \\quad p = softmax(logits)`.
"""

import ast
import re
import textwrap

from latex2mathml.converter import convert

GREEK = "alpha beta gamma delta epsilon eta theta lambda mu nu pi rho sigma tau phi psi omega"
COMMANDS = {name: f"\\{name}" for name in f"{GREEK} log exp min max tanh sum prod".split()}
COMMANDS |= {"eps": r"\epsilon", "grad": r"\nabla", "argmax": r"\operatorname{argmax}"}
OPERATORS = ("log", "exp", "min", "max", "argmax")
SYMBOLS = {"<-": r"\leftarrow", "->": r"\to", ">=": r"\ge", "<=": r"\le", "!=": r"\ne"}
SYMBOLS |= {"||": r"\parallel", "~": r"\sim", "...": r"\dots"} | {mark: f"\\{mark}" for mark in "{}%&#"}
TOKEN = re.compile(
    r"""(?P<gap>[,;]?[ ]{3,}) | (?P<space>[ ]+)
    | (?P<name>[A-Za-z]{3,}_[A-Za-z]{4,}(?:_[A-Za-z]+)* | [A-Za-z]+\d?)
    | (?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)
    | (?P<sub>_(?:\{[^{}]*\}|[A-Za-z0-9]+)) | (?P<sup>\^(?:\{[^{}]*\}|\([^()]*\)|[A-Za-z0-9]+|\*))
    | (?P<mark><-|->|>=|<=|!=|\|\||\.\.\.|.)""",
    re.VERBOSE,
)


def to_tex(text: str) -> str:
    """Return one line of a plain-text equation as TeX."""
    found: list[str] = []
    below: list[str] = []  # indices, of which x_t_old has two
    last, spaced = "", False
    for match in TOKEN.finditer(text.replace("`", "")):
        kind, value = match.lastgroup, match[0]
        if kind == "sub":
            below.append(to_tex(_index(value[1:].strip("{}"))))
            continue
        if below:
            found.append(f"_{{{', '.join(below)}}}")
            below = []
        if kind == "space":
            spaced = True
            continue
        if kind == "name" and spaced and last:
            found.append(_space(last, value))
        if kind == "name" and re.fullmatch(r"[A-Za-z]\d", value):  # k3 is k_3
            below = [value[1]]
        found.append(_piece(kind, value))
        last, spaced = (value, False) if kind in ("name", "number") else ("", False)
    return " ".join(found + ([f"_{{{', '.join(below)}}}"] if below else []))


def _space(last: str, name: str) -> str:
    """Return what parts a name from the name or number before it."""
    words = [len(x) > 1 and x not in COMMANDS for x in (last, name)]
    return (
        r"\ "
        if words[1] and (words[0] or last[0].isdigit())
        else r"\,"
        if any(words) or last in OPERATORS
        else ""
    )


def _piece(kind: str | None, value: str) -> str:
    """Return the TeX of one token."""
    if kind == "gap":
        return value.strip() + r" \qquad"
    if kind == "sup":
        return f"^{{{to_tex(value[1:].strip('{}()'))}}}"
    if kind == "number":
        base, _, power = value.partition("e")
        return value if not power else (f"10^{{{power}}}" if base == "1" else rf"{base} \cdot 10^{{{power}}}")
    if kind == "name":
        return _name(value)
    return SYMBOLS.get(value, value)


def _index(text: str) -> str:
    """Return an index as it is meant: `tm1` is t - 1."""
    return re.sub(r"\b([a-z])m(\d)\b", r"\1-\2", text)


def _name(word: str) -> str:
    if word in COMMANDS:
        return COMMANDS[word]
    escaped = word.replace("_", r"\_")
    return word[0] if len(word) == 1 or word[1].isdigit() else rf"\mathrm{{{escaped}}}"


def to_mathml(text: str, display: str = "inline") -> str:
    """Return a plain-text equation, of one line or several, as MathML."""
    lines = [to_tex(line.strip()) for line in text.strip().splitlines()]
    return "".join(convert(line, display=display) for line in lines)


def is_equation(block: str) -> bool:
    """Return whether an indented block of a docstring is an equation: no Python, no command, no table."""
    text = textwrap.dedent(block).strip()
    if re.match(r"(\$|python |pip |make |jaxrl-align )", text) or not re.search(r"[=<^_/()]", text):
        return False
    if re.search(r"\b(import|lambda \w|def|return)\b|[a-z]\.[a-z]|^\{|\"|[A-Z]=|[^\s,;] {2,}\S", text):
        return False
    try:
        ast.parse(text)
    except SyntaxError:
        return True
    return bool(re.fullmatch(r"[^=]*[-+/^|_][^=]*", text))


SECTION = re.compile(r"(Args|Returns|Raises|Yields|Attributes):")


def with_equations(docstring: str) -> str:
    """Return a docstring whose indented equations are MathML, as blocks of their own."""
    lines, made, at = docstring.splitlines(), [], 0
    section = False
    while at < len(lines):
        section = section or bool(SECTION.fullmatch(lines[at].strip()))
        end = at
        while end < len(lines) and lines[end].startswith("    "):
            end += 1
        free = at == 0 or not lines[at - 1].strip()
        if not section and end > at and free and is_equation("\n".join(lines[at:end])):
            made += [to_mathml(line, "block") for line in lines[at:end]] + [""]
            at = end
        else:
            made.append(lines[at])
            at += 1
    return "\n".join(made)
