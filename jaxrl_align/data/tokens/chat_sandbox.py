"""The sandbox that chat templates run in: Jinja, with a bound on the time and on the text of every rendering.

Jinja's own sandbox keeps a template from Python's inside, but not from filling the memory or never ending.
Here nothing is computed while a template is compiled; every loop, call, filter, test, comparison, sum and
literal looks at the clock and pays, from what the rendering has left, for the characters and elements that it
makes; what could make much out of little, such as `'a' * 10**9`, pays before. Ints end at 64 bits.
"""

import functools
import json
import re
import string
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any

import jinja2.ext
import jinja2.filters
import jinja2.sandbox
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.utils import Namespace

FILTERS = (
    *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby", "int"),
    *("items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse"),
    *("select", "selectattr", "sort", "string", "title", "trim", "truncate", "unique", "upper", "urlencode"),
)
"""Those of Jinja's filters that do not make much out of little, beside the ones written here."""
METHODS: dict[type, tuple[str, ...]] = {
    str: (
        *("capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdecimal", "isdigit"),
        *("islower", "isnumeric", "isspace", "istitle", "isupper", "join", "ljust", "lower", "lstrip"),
        *("partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition"),
        *("rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper"),
        *("zfill", "center", "casefold"),
    ),
    dict: ("get", "items", "keys", "values"),
    list: ("count", "index"),
    tuple: ("count", "index"),
}
"""What a template may call of Python's own types; it gets nothing else of them."""
_PLAIN = (*METHODS, int, float, complex, bytes, type(None), range)
_ELEMENT = 16
"""An element costs as much as so many characters."""
_STEP = 8
"""Likewise a turn of a loop, and a call."""
_WIDE = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(?:\*|\d{4,}|\d*\.(?:\*|\d{4,}))")


class _Meter:
    """What one rendering has left."""

    __slots__ = ("begun", "known", "left", "limit", "seconds", "spans", "until", "written")

    def __init__(self) -> None:
        self.start(0, 0.0)

    def start(self, characters: int, seconds: float) -> None:
        self.left = self.limit = characters
        self.seconds, self.begun = seconds, time.thread_time()
        self.until = time.perf_counter() + seconds
        self.known: dict[int, tuple[Any, int]] = {}
        self.spans: list[tuple[int, int]] = []
        self.written: list[str] = []

    def spend(self, amount: int) -> None:
        """Pay; raise ValueError if nothing is left, of the characters or of the time."""
        self.left -= amount
        if self.left < 0:
            raise ValueError(f"it makes more than {self.limit} characters, elements and steps")
        if time.perf_counter() > self.until:
            used = time.thread_time() - self.begun  # a busy machine is not the template's fault
            if used > self.seconds:
                raise ValueError(f"it takes more than {self.seconds:.3g} seconds")
            self.until = time.perf_counter() + self.seconds - used

    def weigh(self, value: Any) -> int:
        """Return the size of a value when it is written out: an element counts wherever it stands again."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, int):
            if value.bit_length() > 64:
                raise ValueError("it makes a whole number of more than 64 bits")
            return 1
        if isinstance(value, range):
            return 1 + self.weigh(value.start) + self.weigh(value.stop) + len(value)
        if not isinstance(value, Sized) or not hasattr(value, "__iter__") or isinstance(value, nodes.Node):
            return 1
        if (found := self.known.get(id(value))) is not None:
            return found[1]
        self.spend(_ELEMENT * len(value))
        weight = _ELEMENT
        for item in value.items() if isinstance(value, Mapping) else value:
            parts = item if isinstance(value, Mapping) else (item,)
            weight += _ELEMENT + sum(map(self.weigh, parts))
        if weight > self.limit:
            raise ValueError(f"it nests more than {self.limit} characters and elements")
        self.known[id(value)] = (value, weight)  # kept, so that no other gets its id
        return weight


class _Pieces(Namespace):
    """A namespace whose text does not show what it holds, which may hold itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Generator(CodeGenerator):
    """Writes a template's Python with the meter in it."""

    _METERED = (nodes.Compare, nodes.List, nodes.Tuple, nodes.Dict)

    def visit(self, node: nodes.Node, *args: Any, **named: Any) -> Any:
        sliced = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        if not (sliced or isinstance(node, self._METERED)) or getattr(node, "ctx", "load") != "load":
            return super().visit(node, *args, **named)
        self.write("environment.made(")
        super().visit(node, *args, **named)
        return self.write(")")

    def visit_Operand(self, node: nodes.Operand, frame: Any) -> None:
        # A chain of comparisons is one node: the clock is looked at between them.
        node.expr = nodes.Compare(node.expr, [])
        super().visit_Operand(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_For(self, node: nodes.For, frame: Any) -> None:
        if node.test is not None:
            node.test = nodes.Compare(node.test, [])  # looked at for elements that no body sees
        super().visit_For(node, frame)

    def blockvisit(self, body: Any, frame: Any) -> None:
        body = list(body)
        outputs = [part for node in body if isinstance(node, nodes.Output) for part in node.nodes]
        plain = sum(len(part.data) for part in outputs if isinstance(part, nodes.TemplateData))
        self.writeline(f"environment.meter.spend({_STEP + plain})")
        super().blockvisit(body, frame)

    def _output_child_to_const(self, node: Any, frame: Any, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def visit_EvalContextModifier(self, node: Any, frame: Any) -> None:
        self.fail("autoescape is for HTML and not supported", node.lineno)

    visit_ScopedEvalContextModifier = visit_EvalContextModifier


class _Generation(jinja2.ext.Extension):
    """The tag `{% generation %}` around what the assistant says."""

    tags = {"generation"}  # noqa: RUF012, Jinja's way

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    def mark(self, caller: Callable[[], str]) -> str:
        meter = self.environment.meter  # type: ignore[attr-defined]
        text, start = caller(), sum(map(len, meter.written))
        meter.spans.append((start, start + len(text)))
        return text


class BoundedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with a meter; `meter.start` begins a rendering, one at a time.

    Args:
      functions: what templates may call, beside `range`, `dict`, `namespace`, `cycler` and `joiner`.
    """

    code_generator_class = _Generator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **functions: Callable[..., Any]) -> None:
        self.meter = _Meter()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # Jinja would compute constants as it compiles
            finalize=self._written,
            extensions=[jinja2.ext.loopcontrols, _Generation],
        )
        del self.globals["lipsum"]
        self.globals |= functions | {"namespace": _Pieces}
        jinjas: Mapping[str, Any] = self.filters
        tests: Mapping[str, Any] = self.tests
        own = _own_filters(self)
        self.filters = {name: self._metered(jinjas[name]) for name in FILTERS} | own
        self.tests = {name: self._metered(test) for name, test in tests.items()}

    def made(self, value: Any) -> Any:
        """Return a value, paid for."""
        if isinstance(value, str):
            self.meter.spend(1 + len(value))
        else:
            self.meter.weigh(value)
            self.meter.spend(1)
        return value

    def joined(self, values: Any) -> str:
        """Return values as one text, paid for before it is made."""
        self.meter.spend(1 + sum(map(self.meter.weigh, values)))
        return "".join(map(str, values))

    def _written(self, value: Any) -> str:
        """Return what a template writes as text, paid for."""
        return self.made(value) if isinstance(value, str) else self.joined((value,))

    def _metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter or a test whose results are whole and paid for."""

        @functools.wraps(function)
        def run(*args: Any, **named: Any) -> Any:
            self.meter.spend(_STEP)
            result = function(*args, **named)
            return self.made([self.made(x) for x in result] if isinstance(result, Iterator) else result)

        return run

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may have an attribute; see `METHODS`."""
        if isinstance(obj, _PLAIN):
            return attr in METHODS.get(type(obj), ())
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Any, obj: Any, /, *args: Any, **named: Any) -> Any:
        """Call what a template calls, paid for."""
        self.meter.spend(_STEP)
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            args = self._foreseen(owner, obj.__name__, args)
        return self.made(super().call(context, obj, *args, **named))

    def _foreseen(self, owner: str, method: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Pay for what a text's method will make of a few arguments; return them."""
        if method in ("center", "ljust", "rjust", "zfill"):
            self.meter.spend(max(0, *(x for x in args if isinstance(x, int)), 0))
        elif method == "replace" and isinstance(args[0], str) and isinstance(args[-1], str):
            self.meter.spend(owner.count(args[0]) * max(len(x) for x in args if isinstance(x, str)))
        elif method in ("split", "rsplit", "splitlines"):
            by = args[0] if args and isinstance(args[0], str) and args[0] else None
            self.meter.spend(_ELEMENT * (len(owner) // 2 if by is None else owner.count(by)))
        elif method == "join" and args:
            args = ([self.made(x) for x in args[0]], *args[1:])
            self.meter.spend(len(owner) * len(args[0]))
        return args

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return `str.format` in a sandbox, without fields of many characters."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text = value.__self__

        def run(*args: Any, **named: Any) -> str:
            specs = [spec or "" for _, field, spec, _ in string.Formatter().parse(text) if field is not None]
            self._check_format(text, any("{" in spec or re.search(r"\d{4}", spec) for spec in specs))
            self.meter.spend(len(specs) * (1000 + self.meter.weigh(args) + self.meter.weigh(named)))
            return wrapped(*args, **named)

        return run

    def _check_format(self, text: str, wide: bool) -> None:
        if wide or len(text) > 10_000:
            raise ValueError("it formats text by a longer form, or to wider fields, than any template needs")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute `+`, `*`, `**` and `%`, paid for."""
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            self.meter.spend(len(left) + len(right))
            return left + right
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, Sized) and isinstance(other, int):
                    self.meter.spend(max(other, 0) * self.meter.weigh(one))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > 128:
                raise ValueError("it makes a whole number of more than 64 bits")
        elif operator == "%" and isinstance(left, str):
            self.foresee_percent(left, right)
        return self.made(super().call_binop(context, operator, left, right))

    def foresee_percent(self, text: str, values: Any) -> None:
        """Pay for `text % values`."""
        self._check_format(text, len(text) <= 10_000 and _WIDE.search(text) is not None)
        self.meter.spend(text.count("%") * (1000 + self.meter.weigh(values)))


def _own_filters(environment: BoundedEnvironment) -> dict[str, Callable[..., Any]]:
    """Return the filters that would make much out of little, paid for before they do."""
    meter, made = environment.meter, environment.made

    def items_of(value: Any, attribute: Any) -> list[Any]:
        get = jinja2.filters.make_attrgetter(environment, attribute) if attribute is not None else lambda x: x
        return [made(get(x)) for x in value]

    def join(value: Any, d: str = "", attribute: Any = None) -> str:
        parts = [x for item in items_of(value, attribute) for x in (d, item)]
        return environment.joined(parts[1:])

    def replace(s: Any, old: str, new: str, count: int = -1) -> str:
        environment._foreseen(str(s), "replace", (str(old), str(new)))
        return made(str(s).replace(str(old), str(new), count))

    def indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        one = width if isinstance(width, int) else len(width)
        meter.spend(max(0, one) * (1 + len(str(s).splitlines())))
        return made(jinja2.filters.do_indent(str(s), width, first, blank))

    def rounded(value: float, precision: int = 0, method: Any = "common") -> float:
        if not -300 < precision < 300:
            raise ValueError(f"it rounds to {precision} places")
        return made(jinja2.filters.do_round(value, precision, method))

    def total(iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
        for item in items_of(iterable, attribute):
            start = environment.call_binop(None, "+", start, item)
        return start

    def form(value: str, *args: Any, **named: Any) -> str:
        environment.foresee_percent(str(value), (args, named))
        return made(jinja2.filters.do_format(str(value), *args, **named))

    def escape(value: Any) -> str:
        return made(str(jinja2.filters.escape(environment.joined((value,)))))

    functions: dict[str, Callable[..., Any]] = {
        "join": join,
        "replace": replace,
        "indent": indent,
        "round": rounded,
        "sum": total,
    }
    functions |= {"format": form, "escape": escape, "e": escape, "forceescape": escape}
    functions |= {"safe": environment._written, "tojson": functools.partial(_to_json, meter)}
    return functions


def _to_json(
    meter: _Meter,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as it is, as `transformers` does; Jinja's own filter would escape it for HTML."""
    meter.spend(meter.weigh(value) * max(map(len, separators or "-")))
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if isinstance(indent, str) or (indent or 0) > 100:
        raise ValueError("it indents JSON by more than 100 spaces")
    parts = [encoder.encode(value)] if indent is None else []
    for part in encoder.iterencode(value) if indent is not None else parts:
        meter.spend(len(part))
        parts += [part] if indent is not None else []
    return "".join(parts)
