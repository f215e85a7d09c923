"""Hostile templates end soon, use few resources, and are refused in one line."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwchat.errors import TemplateError
from qwchat.text.template.sandbox import SandboxedTemplate
from tests.clocks import PATIENCE_SECONDS, cost_ratio
from tests.tiers import some

GROW = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}{{ ns.x }}"
BIG = "{% set a = 'ab' * 300000 %}{% set b = 'ab' * 300000 %}"
LONG_NUMBERS = "{% set s %}{% for i in range(20000) %}{{ i * 2305843009213693951 }} {% endfor %}{% endset %}"
FOREVER = "{%% for i in range(99999) %%}%s{%% endfor %%}"


def shared(name: str, arguments: str) -> str:
    """Return a template that builds two equal values of 2^40 parts from arguments of macros and compares them."""
    macros = "".join(f"{{% macro f{x}() %}}{{% set ns.{x} = {name} %}}{{% endmacro %}}" for x in "xy")
    calls = "".join(f"{{{{ f{x}({arguments.replace('VALUE', 'ns.' + x)}) }}}}" for x in "xy")
    return "{% set ns = namespace(x='a', y='a') %}" + macros + calls * 40 + "{{ ns.x == ns.y }}"


REACHES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "class by item": "{{ ''['__class__'] }}",
    "class by filter": "{{ messages | attr('__class__') }}",
    "class by map": "{{ messages | map(attribute='role.__class__') | list }}",
    "class by sort": "{{ (messages + messages) | sort(attribute='__class__') }}",
    "class by format": "{{ '{0.__class__}'.format('') }}",
    "class by format_map": "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "globals of a function": "{{ range.__globals__ }}",
    "globals of the template": "{{ self.__init__.__globals__ }}",
    "globals of a macro": "{% macro f() %}{% endmacro %}{{ f.__init__.__globals__ }}",
    "globals of jinja": "{{ cycler.__init__.__globals__ }}",
    "loop": "{% for m in messages %}{{ loop._iterable }}{% endfor %}",
    "namespace": "{{ namespace()._Namespace__attrs }}",
    "append": "{{ messages.append(1) }}",
    "update": "{{ messages[0].update({'role': 'system'}) }}",
    "pop": "{{ messages[0].pop('role') }}",
    "encode": "{{ 'a'.encode() }}",
    "include": "{% include 'other' %}",
    "extends": "{% extends 'other' %}",
    "import": "{% import 'os' as os %}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "print a function": "{{ range }}",
    "print a namespace": "{{ namespace() }}",
    "print a generator": "{{ messages | map('upper') }}",
}
BOMBS = {
    "repeat": "{{ 'a' * 10**9 }}",
    "repeat from the right": "{{ 10**9 * 'a' }}",
    "repeat a list": "{{ [0] * 10**9 }}",
    "repeat twice": "{{ ('a' * 1000000) * 1000000 }}",
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "range to list": "{{ range(10**9) | list | length }}",
    "power": "{{ 9 ** 999999999 }}",
    "power of floats": "{{ 2.0 ** 100000 }}",
    "squares": GROW % ("3", "ns.x * ns.x"),
    "long number": "{{ " + "9" * 30000 + " }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "indent": "{{ 'a\nb' | indent(1000000000) }}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "round": "{{ 2 | round(-1000000000) }}",
    "json indent": "{{ [[1]] | tojson(indent=1000000000) }}",
    "json separators": "{{ [1, 2] | tojson(separators=(',' * 100, ':')) }}",
    "date": "{{ strftime_now('%1000000000Y') }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace held": "{% set f = ('a' * 100000).replace %}{{ f('', 'b' * 100000) }}",
    "replace filter": "{{ ('a' * 100000) | replace('', 'b' * 100000) }}",
    "join": "{{ ('a' * 100000) | join('b' * 100000) }}",
    "double": GROW % ("'a'", "ns.x ~ ns.x"),
    "double by plus": GROW % ("'a'", "ns.x + ns.x"),
    "double a list": GROW % ("[0]", "ns.x + ns.x"),
    "double by replace": GROW % ("'ab'", "ns.x.replace('', ns.x)"),
    "double by join": GROW % ("'ab'", "[ns.x, ns.x] | join(ns.x)"),
    "double by json": GROW % ("'ab'", "ns.x | tojson | tojson"),
    "double by quoting": GROW % ("'ab'", "ns.x | list | string"),
    "double by block": "{% set ns = namespace(x='a') %}{% for i in range(60) %}"
    "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "nested lists": GROW % ("0", "[ns.x, ns.x]"),
    "nested tuples": GROW % ("0", "(ns.x, ns.x)"),
    "nested dicts": GROW % ("0", "{'a': ns.x, 'b': ns.x}"),
    "nested by map": GROW % ("[0]", "['', ''] | map('default', ns.x, true) | list"),
    "itself": "{% set ns = namespace() %}{% set ns.x = [ns] %}",
    "many copies by map": "{% set a = 'ab' * 100000 %}"
    "{{ ([''] * 9999) | map('default', a, true) | map('upper') | list | length }}",
    "many copies by loop": "{% set a = 'ab' * 100000 %}{% set ns = namespace(x=[]) %}"
    "{% for i in range(9999) %}{% set ns.x = ns.x + [a.upper()] %}{% endfor %}",
    "many slices": BIG + "".join(f"{{% set x{n} = a[1:] %}}" for n in range(1200)),
    "nested by arguments": shared("varargs", "VALUE, VALUE"),
    "nested by keywords": shared("kwargs", "a=VALUE, b=VALUE"),
    "nested by unpacking": shared("varargs", "*[VALUE, VALUE]"),
    "nested by unpacking words": shared("kwargs", "**{'a': VALUE, 'b': VALUE}"),
    "nested by a call block": "{% set ns = namespace(x='a', y='a') %}"
    "{% macro f(v) %}{{ caller(v, v) }}{% endmacro %}"
    + "{% call f(ns.x) %}{% set ns.x = varargs %}{% endcall %}{% call f(ns.y) %}{% set ns.y = varargs %}{% endcall %}"
    * 40
    + "{{ ns.x == ns.y }}",
    "nested in a namespace": GROW % ("0", "[namespace(x=ns.x, y=ns.x)]"),
    "nested by a default": GROW % ("[0]", "['', ''] | map('default', default_value=ns.x, boolean=true) | list"),
    "nested by cycling": GROW % ("[0]", "[ns.x, loop.cycle(ns.x, ns.x)]"),
    "long attribute": "{{ range(9999) | list | sort(attribute='a,' * 90000) }}",
    "long attribute of map": "{{ range(9999) | map(attribute='real.' * 90000) | list }}",
    "long attribute of join": "{{ range(9999) | join(attribute='real.' * 90000) }}",
    "number of a power of two": "{{ ('f' * 900000) | int(0, 16) == 1 }}",
    "much text": FOREVER % ("x" * 30000),
}
LOOPS = {
    "nested": FOREVER % (FOREVER % "x"),
    "empty": FOREVER % (FOREVER % ""),
    "three deep": FOREVER % (FOREVER % (FOREVER % "{% if i %}{% endif %}")),
    "too many levels": "{% for i in range(9) %}" * 30 + "{% endfor %}" * 30,
    "recursive": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macro tree": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(45) }}",
    "callers": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f() %}" * 60
    + "x"
    + "{% endcall %}" * 60,
    "comparing": BIG + FOREVER % "{% if a == b %}{% endif %}",
    "searching": BIG + FOREVER % "{% if 'aab' in a %}{% endif %}",
    "searching backwards": BIG + "{{ ('a' * 400000).rfind('ab' + 'a' * 200000) }}",
    "splitting backwards": BIG + "{{ ('a' * 400000).rsplit(sep='ab' + 'a' * 200000) }}",
    "parting backwards": BIG + "{{ ('a' * 400000).rpartition('ab' + 'a' * 200000) }}",
    "stripping": BIG + "{{ ('a' * 400000).strip('b' * 400000 + 'a') }}",
    "trimming": BIG + "{{ ('a' * 400000) | trim('b' * 400000 + 'a') }}",
    "selecting": "{% set a = range(99999) | list %}{{ a | select('in', a[::-1]) | list | length }}",
    "selecting by map": "{% set a = range(9999) | list %}{{ [a, a, a] | map('select', 'in', a) | map('list') | list }}"
    + "{{ a | select('in', a[::-1]) | list | length }}",
    "numbers with one hash": LONG_NUMBERS + "{{ s.split() | map('int') | unique | list | length }}",
    "keys with one hash": LONG_NUMBERS + "{{ namespace(s.split() | map('int') | map('batch', 2)) }}",
    "keys with one hash from pairs": LONG_NUMBERS + "{{ namespace([s.split() | map('int') | list]) }}",
    "sets of views": "{% set d = {'a': 1} %}" + FOREVER % "{% set x = d.keys() - range(99999) %}",
    "sorting": "{% set a = range(99999) | map('string') | list %}" + FOREVER % "{% set b = a | sort %}",
    "testing": BIG + FOREVER % "{% if 'aab' is in a %}{% endif %}",
    "splitting": BIG + FOREVER % "{% set x = a.split('b') %}",
    "slicing": "{% set a = range(99999) | list %}" + FOREVER % "{% set b = a[1:] %}",
    "parentheses": "{{ " + "(" * 15000 + "1" + ")" * 15000 + " }}",
    "brackets": "{{ " + "[" * 15000 + "]" * 15000 + " }}",
    "sums": "{{ " + "+".join(["1"] * 15000) + " }}",
    "dots": "{{ a" + ".b" * 15000 + " }}",
    "nots": "{{ " + "not " * 7000 + "1 }}",
    "ifs": "{% if 1 %}" * 1500 + "{% endif %}" * 1500,
    "too long": "{{ a }}" * 10000,
}
HOSTILE = {**REACHES, **BOMBS, **LOOPS}


def refusal(source: str) -> str:
    try:
        SandboxedTemplate(source, "model").render({"messages": [{"role": "user", "content": "hello"}]}, 9)
    except TemplateError as error:
        return str(error)
    return ""


def check_refusal(source: str) -> None:
    """Check that a template is refused in one line, at little more cost than a plain loop up to the step limit."""
    messages: list[str] = []
    assert cost_ratio(lambda: messages.append(refusal(source)), lambda: refusal(LOOPS["nested"]), rounds=1) < 20
    [message] = messages
    assert message.startswith("the chat template in model cannot be used: ")
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize("source", some(HOSTILE.values(), 15), ids=some(HOSTILE, 15))
def test_a_hostile_template_is_refused(source: str) -> None:
    check_refusal(source)


@pytest.mark.slow
def test_other_threads_are_as_safe_and_do_not_share_limits() -> None:
    names = ("class", "repeat", "nested", "double", "nested lists", "macro tree", "parentheses", "much text")
    harmless = SandboxedTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", "model")
    with ThreadPoolExecutor(len(names)) as threads:
        refusals = threads.map(check_refusal, [HOSTILE[name] for name in names])
        assert harmless.render({"messages": [{"content": "hello"}]}, 5) == "hello"
        assert len(list(refusals)) == len(names)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as only Linux does")
@pytest.mark.slow
def test_hostile_templates_need_at_most_half_a_gigabyte() -> None:
    program = "from tests.text.test_template_hostile import run_with_little_memory; run_with_little_memory()"
    repository = Path(__file__).resolve().parents[2]
    finished = subprocess.run(
        [sys.executable, "-c", program],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == ["refused: " + name for name in BOMBS]


def run_with_little_memory() -> None:
    """Try every hostile template with 512 MiB of memory in addition to Python's. Runs in a separate process."""
    import resource  # exists on POSIX systems only

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20),) * 2)
    for name, source in BOMBS.items():
        message = refusal(source)
        print("refused: " + name if message and "MemoryError" not in message else f"{name}: {message}")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ messages[0].role | upper ~ '!' * 3 }}", "USER!!!"),
        ("{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{% endfor %}", "1/1True"),
        ("{% set ns = namespace(n=0) %}{% for i in range(9) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "36"),
        ("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}", "role=user;content=hello;"),
        (
            "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}"
            "{{ i }}{% endfor %}",
            "013",
        ),
        ("{% macro f(x, y='-') %}{{ x }}{{ y }}{% endmacro %}{{ f('a') }}{{ f('b', y='+') }}", "a-b+"),
        ("{% set x | upper %}a{{ 'b' }}{% endset %}{{ x }}", "AB"),
        ("{{ messages | map(attribute='content') | join(', ') }}", "hello"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ messages[0].content.split('l') }}", "['he', '', 'o']"),
        ("{{ messages[0].content.replace('l', 'L', 1) }}{{ 'aaa' | replace('a', 'b', 2) }}", "heLlobba"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "hello"}'),
        ("{{ {'b': '<é>'} | tojson(indent=2) }}", '{\n  "b": "<é>"\n}'),
        ("{{ messages[0]['tool_calls'] is defined }}{{ missing }}{{ none }}", "FalseNone"),
        ("{{ messages[::-1][0].content[1:3] }}{{ (1, 2)[1] }}{{ 7 // 2 }}{{ 7 % 4 }}", "el233"),
        ("{{ '  a ' | trim }}{{ ' b '.strip() }}{{ 'x' if messages[0].content.startswith('he') else 'y' }}", "abx"),
        ("{%- if true %}\n  {%- if 'ell' in messages[0].content %}a{% endif %}\n{% endif %}\n", "a"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% set name, other = 'a', 'b' %}{{ other ~ name }}{{ dict is defined }}", "baFalse"),
        ("{{ '<b>' | safe }}{{ 5 | string + '5' }}{{ '5' | int + 5 }}", "<b>5510"),
    ],
)
def test_constructs_of_real_templates_work(source: str, expected: str) -> None:
    variables = {"messages": [{"role": "user", "content": "hello"}]}
    assert SandboxedTemplate(source, "model").render(variables, 9) == expected
