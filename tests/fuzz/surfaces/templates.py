"""Chat templates: random programs in a small grammar of Jinja."""

from __future__ import annotations

import json
from random import Random

from tests.fuzz import jinja, mutations
from tests.fuzz.base import QUESTION, Base, contents, manifest_with, parsed
from tests.fuzz.case import MODEL, OK, TOO_LONG, Case, Files, command

NAME = "templates"
_NAMES = ("a", "b", "x", "ns.x", "messages", "m", "loop.index", "eos_token", "missing", "varargs", "kwargs", "caller")
_FILTERS = (
    *("upper", "list", "length", "string", "tojson", "trim", "first", "last", "join", "sort", "unique", "reverse"),
    *("join('xx')", "batch(3)", "slice(3)", "indent(99)", "center(9999)", "replace('a', 'bb')", "map('upper')", "sum"),
    *("wordwrap(2)", "wordcount", "title", "urlize", "escape", "safe", "default('x' * 99)", "groupby('role')", "int"),
    *("round(-9)", "xmlattr", "dictsort", "items", "format(1, 2)", "truncate(9)", "pprint", "filesizeformat", "abs"),
    *("select('odd')", "map(attribute='role')", "min", "max", "float", "attr('__class__')", "random", "striptags"),
)
_METHODS = (
    *("upper()", "split('a')", "replace('a', 'aaaa')", "replace('', a)", "join([a, a])", "items()", "keys()"),
    *("ljust(99999)", "zfill(9999)", "format(a, b)", "center(1000)", "encode()", "__class__", "append(1)", "strip()"),
    *("splitlines()", "partition('a')", "translate({97: a})", "expandtabs(9999)", "casefold()", "count('')", "find(b)"),
)
_OPERATORS = ("+", "*", "~", "-", "/", "//", "%", "**", "==", "<", "in", "not in", "and", "or", "is")
_TESTS = ("defined", "string", "mapping", "iterable", "sameas a", "divisibleby 3", "in a", "equalto b", "odd", "none")


def make(random: Random, number: int, base: Base) -> Case:
    """Make one case: a random program, or a damaged real template."""
    kind = random.random()
    if kind < 0.7:
        source = jinja.program(random)
    elif kind < 0.85:
        source = "".join(statement(random, 4) for _ in range(random.choice((1, 2, 3, 6))))
        if random.random() < 0.3:
            source = "{% for m in messages %}{{ m.content }}{% endfor %}" + source
    else:
        real = parsed(base.model, "tokenizer_config.json")["chat_template"]
        source = mutations.mutate_bytes(random, real.encode()).decode("utf-8", "replace")
    text = random.choice(("hi", "hello <|im_end|> you", "a" * 200, "{{ 7 * 7 }}"))
    asked = command("-p", text, "-m", "{case}/model", *QUESTION, "--json", codes=(OK, MODEL, TOO_LONG), json=True)
    title = "program" if kind < 0.7 else "wild program" if kind < 0.85 else "changed template"
    return Case(NAME, number, title, files_of(random, source, base), (asked,), copies=(("model", base.model),))


def files_of(random: Random, source: str, base: Base) -> Files:
    """Return a template in tokenizer_config.json or in a file of its own."""
    if random.random() < 0.2:
        return {"model/chat_template.jinja": source.encode("utf-8", "replace")}
    values = {**parsed(base.model, "tokenizer_config.json"), "chat_template": source}
    if random.random() < 0.05:
        values["chat_template"] = random.choice(([{"name": "default", "template": source}], [source], {"x": source}, 5))
    if random.random() < 0.05:
        values = mutations.mutate_json(random, values)
    data = json.dumps(values).encode()
    if random.random() < 0.02:
        return {
            "model/tokenizer_config.json": mutations.strange_file(random, contents(base.model)["tokenizer_config.json"])
        }
    return {
        "model/tokenizer_config.json": data,
        "model/manifest.json": manifest_with(parsed(base.model, "manifest.json"), {"tokenizer_config.json": data}),
    }


def statement(random: Random, depth: int) -> str:
    """Return a part of a template."""
    if depth == 0:
        return random.choice(("x", "{{ a }}", f"{{{{ {expression(random, 1)} }}}}", "\n", "{# #}", "{{ ns.x }}"))
    inner = "".join(statement(random, depth - 1) for _ in range(random.choice((1, 1, 2))))
    value = expression(random, 3)
    kind = random.randrange(16)
    if kind in (0, 1):
        return f"{{% set {random.choice('abx')} = {value} %}}"
    if kind == 2:
        return f"{{% set ns = namespace(x={value}) %}}"
    if kind == 3:
        return f"{{% set ns.x = {value} %}}"
    if kind in (4, 5):
        several = random.choice((value, "range(99)", "range(99999)", "messages", "messages", "[1, 2]", "a"))
        rest = random.choice(("", "", " recursive", " if loop.first", " if x"))
        return f"{{% for x in {several}{rest} %}}{inner}{{% endfor %}}"
    if kind == 6:
        return f"{{% if {value} %}}{inner}{{% elif {expression(random, 1)} %}}y{{% else %}}z{{% endif %}}"
    if kind in (7, 8):
        return _macro(random, inner)
    if kind == 9:
        return f"{{% set a %}}{inner}{{% endset %}}"
    if kind == 10:
        return f"{{% filter {random.choice(_FILTERS)} %}}{inner}{{% endfilter %}}"
    if kind == 11:
        return random.choice(
            (
                *("{% include 'a' %}", "{% import 'os' as o %}", "{% extends a %}", "{% raw %}{{ a }}{% endraw %}"),
                *("{% endif %}", "{{", "{%", "{% for %}", "{{ self }}", "{% do a.append(1) %}", "{% break %}"),
                *(
                    "{{ loop(x) }}",
                    "{{ raise_exception(a) }}",
                    "{{ strftime_now('%c' * 99) }}",
                    "{% block a %}{% endblock %}",
                ),
                *(
                    "{% generation %}x{% endgeneration %}",
                    "{{ cycler(a, b).next() }}",
                    "{{ lipsum() }}",
                    "{{ dict(a=a) }}",
                ),
            )
        )
    if kind == 12:
        return f"{{% set a = a {random.choice(('~', '+', '*'))} a %}}" * random.choice((1, 5, 40))
    return f"{{{{ {value} }}}}"


def _macro(random: Random, inner: str) -> str:
    """Return a macro, and calls of it with more arguments than it names."""
    body = inner + random.choice(
        ("", "{{ varargs }}", "{{ kwargs }}", "{{ f(varargs, varargs) }}", "{{ caller(varargs) }}", "{{ f(*varargs) }}")
    )
    arguments = random.choice(("", "a", "a, b=a", "a, a"))
    call = random.choice(
        (
            *("f()", "f(a, a, a, a)", "f(x=a, y=a)", "f(*range(9))", "f(**messages[0])", "f(f(a, a), f(a, a))"),
            f"f({expression(random, 2)}, {expression(random, 2)}, z={expression(random, 1)})",
        )
    )
    grow = (
        "{% macro g() %}{{ varargs }}{% endmacro %}{% set ns = namespace(x=[1]) %}{% for i in range(40) %}"
        "{% set ns.x = g(ns.x, ns.x) %}{% endfor %}{{ ns.x == ns.x }}"
    )
    made = f"{{% macro f({arguments}) %}}{body}{{% endmacro %}}{{{{ {call} }}}}"
    if random.random() < 0.1:
        made += grow
    return made + ("{% call f(a) %}x{% endcall %}" if random.random() < 0.3 else "")


def expression(random: Random, depth: int) -> str:
    """Return an expression."""
    if depth == 0 or random.random() < 0.15:
        return random.choice(
            (
                *_NAMES,
                *(
                    "1",
                    "-1",
                    "99999",
                    "10**9",
                    "1e308",
                    "'a'",
                    "'ab' * 9999",
                    "true",
                    "none",
                    "''",
                    "messages[0].content",
                ),
                *(
                    "range(9)",
                    "range(99999)",
                    "[1] * 9999",
                    "{}",
                    "'%s'",
                    "'{0}'",
                    "9" * 50,
                    "'\\ud800'",
                    "'\\x1b[31m'",
                ),
            )
        )
    left, right = expression(random, depth - 1), expression(random, depth - 1)
    kind = random.randrange(12)
    if kind in (0, 1, 2):
        operator = random.choice(_OPERATORS)
        return f"({left} is {random.choice(_TESTS)})" if operator == "is" else f"({left} {operator} {right})"
    if kind in (3, 4):
        return f"({left}) | {random.choice(_FILTERS)}"
    if kind in (5, 6):
        return f"({left}).{random.choice(_METHODS)}"
    if kind == 7:
        return f"[{left}, {right}]"
    if kind == 8:
        return f"{{'a': {left}, {random.choice(('b', '1', 'x'))!r}: {right}}}"
    if kind == 9:
        place = random.choice(("0", "-1", "::-1", ":9", "99999", "a", "::0", "'role'", "'__class__'"))
        return f"({left})[{place}]"
    if kind == 10:
        return f"({left} if {right} else 'z')"
    return f"f({left}, *[{right}], k={left})"
