"""Chat templates within bounds write what plain Jinja writes; those without end are refused in any thread."""

import json
import re
import threading
import time
import tracemalloc

import pytest

jinja2 = pytest.importorskip("jinja2.sandbox")
from jinja2.ext import loopcontrols  # noqa: E402

from jaxrl_align.data.tokens import chat, chat_sandbox  # noqa: E402
from jaxrl_align.data.tokens.chat import ChatTemplate  # noqa: E402
from tests.fuzz.model_inputs import CHAT, TEMPLATE  # noqa: E402

ALIKE = (
    "{{ 'a' ~ 1 ~ none ~ [1, 'b'] ~ {'a': 1.5} }}{{ 1 + 2 * 3 ** 2 - 4 // 3 % 5 / 2 }}{{ -1 }}",
    "{{ [1] + [2] }}",
    "{{ 'ab' * 3 }}{{ [1, 2] * 2 }}{{ 3 * 'x' }}{{ '%s-%03d' % ('a', 7) }}{{ '%d%%' | format(5) }}",
    "{{ '{}-{a:>5}'.format(1, a=2) }}{{ '{a}'.format_map({'a': 3}) }}{{ 1 < 2 <= 2 != 3 }}{{ 'a' in 'cat' }}",
    "{% for m in messages if m.role != 'x' %}{{ loop.index }}{{ loop.last }}{{ m.role }}"
    "{% else %}-{% endfor %}",
    "{% for a in [1, [2, [3]]] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}",
    "{% macro f(x, y=2) %}<{{ x }}{{ y }}{{ caller() if caller }}>{% endmacro %}{{ f(1) }}"
    "{% call f(3, y=4) %}in{% endcall %}",
    "{% set ns = namespace(a=1) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}",
    "{% set x %}block {{ 1 }}{% endset %}{{ x }}{% filter upper %}abc{% endfilter %}"
    "{% with y = 2 %}{{ y }}{% endwith %}",
    "{{ messages[0].content.strip().split(' ')[1:] }}{{ messages[-1]['content'][::-1] }}",
    "{{ 'a,b'.split(',') }}",
    "{{ 'abc'.replace('b', 'xx') }}{{ '-'.join(['a', 'b']) }}{{ 'a'.ljust(4) }}|{{ 'a'.center(5, '*') }}|",
    "{{ 'a\nb' | indent(2) }}{{ 'a\nb' | indent('> ', true) }}{{ 2.567 | round(2) }}{{ 2.5 | round }}",
    "{{ [3, 1, 2] | sort | join(',') }}{{ [1, 2] | sum }}{{ [{'a': 1}, {'a': 2}] | sum(attribute='a') }}",
    "{{ [[1], [2]] | sum(start=[]) }}{{ [1, 2] | join }}{{ messages | join('/', attribute='role') }}",
    "{{ 'aXa' | replace('a', 'b', 1) }}{{ ' x ' | trim }}{{ 'abc' | truncate(2, true, '..', 0) }}",
    "{{ messages | map(attribute='role') | list }}{{ [1, 2, 3] | select('odd') | list }}",
    "{{ [1, 1] | unique | list }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ [1, none] | reject('none') | list }}",
    "{{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='content') | first }}",
    "{{ {'b': 1, 'a': 2} | dictsort }}{{ {'b': 1} | items | list }}{{ messages | groupby('role') | length }}",
    "{{ '5' | int + 1 }}{{ '1.5' | float }}{{ -3 | abs }}{{ [1, 2] | last }}{{ [1, 5] | max }}",
    "{{ 'a b' | title }}",
    "{{ 'a&b' | urlencode }}{{ undefined_one | default('d') }}{{ 'x' | d('y') }}{{ 'Ab' | lower }}",
    "{{ 'a' | capitalize }}",
    "{{ '<a>' | safe }}{{ '<a & b>' | e }}{{ '<' | escape }}{{ [1] | string }}",
    "{{ 'abc' | reverse }}{{ [2] | count }}",
    "{{ dict(a=1).items() | list }}{{ {'a': 1}.get('b', 2) }}{{ {'a': 1}.keys() | list }}",
    "{{ [1, 2].index(2) }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{% set j = joiner(',') %}{{ j() }}{{ j() }}",
    "{% if messages is defined and messages[0] is mapping and 1 is number and 'a' is string %}yes{% endif %}",
    "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}"
    "{{ i }}{% endfor %}",
    "{{ [3, 1] | min }}{{ 'a' | upper }}{{ '<' | forceescape }}{{ [1, 2] | map('string') | join }}",
    "{% block b %}in{% endblock %}{{ self.b() }}{{ 'x' if false }}{{ (1, 2) }}{{ 2 ** 0.5 }}{{ true and 1 }}",
)


def render_plainly(source):
    """Return what Jinja's own sandbox writes."""
    environment = jinja2.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    return environment.from_string(source).render(messages=json.loads(json.dumps(CHAT)), tools=None)


@pytest.mark.parametrize("source", ALIKE)
def test_a_template_writes_what_plain_jinja_writes(source):
    assert ChatTemplate(source).render(CHAT) == render_plainly(source)


def test_every_filter_is_jinjas_or_is_shown_to_be_alike():
    own = {
        "join",
        "replace",
        "indent",
        "round",
        "sum",
        "format",
        "escape",
        "e",
        "forceescape",
        "safe",
        "tojson",
    }
    environment = chat_sandbox.BoundedEnvironment()
    assert set(environment.filters) == own | set(chat_sandbox.FILTERS)
    assert "lipsum" not in environment.globals
    shown = " ".join(ALIKE) + "| tojson | attr"  # JSON is not as Jinja writes it; attributes are tested below
    assert [name for name in environment.filters if not re.search(rf"\| {name}\b|map\('{name}'", shown)] == []


def test_long_conversations_have_as_much_as_they_need():
    """A thousand turns, and a text that grows with each of them."""
    source = (
        "{% set ns = namespace(text='') %}{% for m in messages %}"
        "{% set ns.text = ns.text + m.role + m.content %}"
        "{% endfor %}{{ ns.text }}"
    )
    turns = [{"role": "user", "content": "word " * 40}] * 1000
    begin = time.perf_counter()
    assert ChatTemplate(source).render(turns) == ("user" + "word " * 40) * 1000
    assert time.perf_counter() - begin < 5
    long = [{"role": "user", "content": "x" * 3_000_000}]
    assert len(ChatTemplate(TEMPLATE).render(long)) > 3_000_000


def test_a_rendering_that_was_stopped_leaves_the_next_one_alone():
    template = ChatTemplate("{% if messages | length > 1 %}{{ 'a' * 10 ** 9 }}{% endif %}{{ 'b' * 99 }}")
    for _ in range(2):
        with pytest.raises(ValueError, match="it makes more than .* characters"):
            template.render(CHAT)
        assert template.render(CHAT[:1]) == "b" * 99


def test_threads_do_not_pay_for_each_other(monkeypatch):
    """And the bound of time holds in a thread that can take no signal."""
    monkeypatch.setattr(chat, "CHARACTERS", 2**40)
    monkeypatch.setattr(chat, "SECONDS", 0.2)
    template = ChatTemplate(
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{% for m in messages %}{{ m.content }}{{ f(60) if m.content == 'hang' }}{% endfor %}"
    )
    said: dict[str, object] = {}

    def run(name, content, turns):
        try:
            said[name] = [template.render([{"role": "user", "content": content}]) for _ in range(turns)]
        except ValueError as error:
            said[name] = str(error)

    threads = [threading.Thread(target=run, args=args) for args in (("a", "hang", 1), ("b", "x", 200))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert said == {
        "a": "the chat template failed on this conversation: it takes more than 0.2 seconds",
        "b": ["x"] * 200,
    }


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 2 ** 64 }}", "whole number of more than 64 bits"),
        ("{{ 9223372036854775807 * 9223372036854775807 }}", "whole number of more than 64 bits"),
        ("{{ [[1] * 100000] * 100000 }}", "makes more than"),
        ("{% set x = [1] * 70000 %}{% set y = [x, x, x, x] %}", "nests more than"),
        ("{{ ('%s' * 6000) % 1 }}", "formats text by a longer form"),
        ("{% for a in [1] %}" * 25 + "{% endfor %}" * 25, "is no Jinja template: too many statically nested"),
        ("{{ 'a' * 10000000 }}", "makes more than"),
        ("{{ 'x' % () if '%5000d' % 1 }}", "formats text by a longer form, or to wider fields"),
        ("{{ strftime_now('%' * 200) }}", "the date in a form of more than 100 characters"),
        ("{{ ''.encode() }}", "access to attribute 'encode' of 'str' object is unsafe"),
        ("{% autoescape true %}{% endautoescape %}", "is no Jinja template: autoescape is for HTML"),
        ("x" * 70_000, "must have at most 65536 characters; got 70000; is it damaged"),
        ("{{ raise_exception('a\nb') }}", "conversation: a b$"),
    ],
)
def test_what_is_out_of_bounds_is_refused_in_one_line(source, message):
    with pytest.raises(ValueError, match=message) as error:
        ChatTemplate(source, origin="of a/b").render(CHAT)
    assert str(error.value).startswith("the chat template of a/b ") and "\n" not in str(error.value)


def test_nothing_is_computed_while_a_template_is_compiled(monkeypatch):
    environment, called = chat_sandbox.BoundedEnvironment(), []
    environment.filters["upper"] = lambda value: called.append(value) or "A"
    monkeypatch.setattr(environment, "call_binop", lambda *args: called.append(args) or 1)
    source = (
        "{{ 'a' | upper }}{{ 2 * 3 }}{% if 'b' | upper %}{% endif %}{% set x = 2 ** 3 %}{{ ['c' | upper] }}"
    )
    template = environment.from_string(source)
    assert called == []
    environment.meter.start(1000, 1.0)
    template.render()
    assert len(called) == 5


def spent(source):
    """Return what a rendering pays."""
    template = ChatTemplate(source)
    template.render(CHAT)
    meter = template._template().environment.meter
    return meter.limit - meter.left


NUMBERS = "{% set x = range(5000) | list %}"


@pytest.mark.parametrize(
    ("less", "more", "least"),
    [
        ("{% for i in range(1) %}{% endfor %}", "{% for i in range(1001) %}{% endfor %}", 8_000),
        (
            "{% for i in range(1) if false %}{% endfor %}",
            "{% for i in range(1001) if false %}{% endfor %}",
            1_000,
        ),
        (
            "{% for i in range(9) %}{% endfor %}",
            "{% for i in range(9) %}" + "a" * 999 + "{% endfor %}",
            9 * 999,
        ),
        ("{{ 1 == 1 }}", "{{ 1 == 1" + " == 1" * 100 + " }}", 100),
        ("{{ 1 }}", "{{ 1 ~ " + "'a'.upper() ~ " * 100 + "1 }}", 800),
        ("{{ [1] | select('odd') | first }}", "{{ range(1, 1001) | select('odd') | first }}", 8_000),
        (NUMBERS, NUMBERS + "{% set y = x[1:] %}", 16 * 4_999),
        (NUMBERS, NUMBERS + "{% set y = [x] %}", 16),
    ],
)
def test_what_is_done_is_paid_for(less, more, least):
    """Deterministic where a clock is not: what a template could repeat without paying has no bound."""
    assert spent(more) - spent(less) >= least


@pytest.mark.parametrize(
    "source",
    [
        "{% set x = 'a' * 3000 %}{{ x.replace('', x) }}",
        "{% set x = 'a' * 3000 %}{{ x | replace('a', x) }}",
        "{% set x = 'a' * 3000 %}{{ x.join(x) }}",
        "{% set x = 'a ' * 400000 %}{{ x.split() | length }}",
        "{% set x = 'a' * 3000 %}{{ x ~ " + "~".join(["x"] * 3_000) + " }}",
    ],
)
def test_what_makes_much_of_little_is_paid_for_before(source):
    template = ChatTemplate(source)
    template._template()
    tracemalloc.start()
    with pytest.raises(ValueError, match="it makes more than"):
        template.render(CHAT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


def test_a_namespace_does_not_show_what_it_holds():
    """It may hold itself, and in thirty steps a text of 2^30 characters."""
    source = "{% set n = namespace(x=1) %}{% set n.x = namespace(a=n.x, b=n) %}{{ n.x }}{{ [n] }}"
    assert ChatTemplate(source).render(CHAT) == "<Namespace>[<Namespace>]"


def test_time_is_what_the_thread_computes_not_what_passes():
    meter = chat_sandbox.BoundedEnvironment().meter
    meter.start(100, 0.01)
    time.sleep(0.03)
    meter.spend(1)
    with pytest.raises(ValueError, match="it takes more than 0.01 seconds"):
        while True:
            meter.spend(0)


def test_each_thread_has_a_program_of_its_own():
    """Two renderings at once would pay from one purse."""
    template, found = ChatTemplate("a"), []
    thread = threading.Thread(target=lambda: found.append(template._template()))
    thread.start()
    thread.join()
    assert found[0] is not template._template() and template._template() is template._template()


def test_attributes_are_those_that_the_sandbox_names():
    source = "{{ (messages[0] | attr('items'))() | list | length }}{{ 'a' | attr('encode') }}{{ 1.5.real }}"
    assert ChatTemplate(source).render(CHAT) == "2"
