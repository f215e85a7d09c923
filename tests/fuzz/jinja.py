"""Random chat templates in the language of the sandbox, with defined names and mostly correct types.

A template that fails in its first line tests little; these run for a while before they reach a limit.
"""

from __future__ import annotations

from random import Random

_PRELUDE = (
    "{% macro f() %}{{ varargs | length }}{% endmacro %}{% macro g(u='q') %}{{ u }}{{ kwargs | length }}{% endmacro %}"
    "{% macro h(t) %}{% set n = namespace(v=t) %}{{ n.v }}{{ n.v }}{% endmacro %}"
    "{% macro w() %}[{{ caller() }}]{% endmacro %}"
    "{% set a = 'ab' %}{% set b = messages[0].content %}{% set l = [1, 2, 3] %}{% set d = {'k': 'v'} %}"
    "{% set ns = namespace(s='a', n=2, l=[1], d={'z': 1}) %}"
)
_TEXTS = (
    *("a", "b", "ns.s", "'x'", "' q '", "'<|im_start|>'", "'a\\n\\tb'", "messages[-1].role", "messages[0]['content']"),
    *("'漢字👍'", "'\\x1b[31m\\u202e'", "'%s{0}'", "''"),
)
_NUMBERS = ("0", "1", "2", "7", "99", "-3", "10**6", "2.5", "ns.n", "a | length", "l | length", "2**60", "1e300")
_LISTS = ("l", "ns.l", "[]", "messages", "[a, b]", "(1, 'a')", "range(5) | list", "range(3000) | list", "a | list")
_METHODS = ("upper()", "lower()", "strip()", "title()", "capitalize()", "lstrip('a')", "rstrip()", "removeprefix('a')")


def program(random: Random) -> str:
    """Return a whole template."""
    parts = [statement(random, random.choice((2, 3, 4))) for _ in range(random.choice((1, 2, 4, 8)))]
    turn = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    return _PRELUDE + (turn if random.random() < 0.7 else "") + "".join(parts)


def statement(random: Random, depth: int) -> str:
    """Return a statement with nested ones, down to `depth`."""
    if depth == 0:
        return random.choice(("x", f"{{{{ {text(random, 1)} }}}}", f"{{% set ns.s = {text(random, 2)} %}}"))
    inner = "".join(statement(random, depth - 1) for _ in range(random.choice((1, 1, 2, 3))))
    kind = random.randrange(15)
    if kind == 0:
        return f"{{% set {random.choice('ab')} = {text(random, 3)} %}}" + inner
    if kind == 1:
        return f"{{% set ns.s = {text(random, 3)} %}}" + inner
    if kind == 2:
        return f"{{% set ns.n = {number(random, 3)} %}}" + inner
    if kind == 3:
        return f"{{% set ns.l = {sequence(random, 3)} %}}" + inner
    if kind in (4, 5):
        return f"{{% for x in {sequence(random, 2)} %}}{inner}{{% endfor %}}"
    if kind == 6:
        times = random.choice((3, 9, 60, 400, 99_999))
        leaving = random.choice(("", "", f"{{% if i > {times // 2} %}}{{% break %}}{{% endif %}}", "{% continue %}"))
        return f"{{% for i in range({times}) %}}{leaving}{inner}{{% endfor %}}"
    if kind == 7:
        return f"{{% if {truth(random, 3)} %}}{inner}{{% else %}}y{{% endif %}}"
    if kind == 8:
        name = random.choice(("f", "g", "h", "w"))
        return (
            f"{{% macro {name}(p, q=a) %}}{inner}{random.choice(('{{ varargs }}', '{{ kwargs }}', ''))}{{% endmacro %}}"
        )
    if kind == 9:
        return f"{{% call w() %}}{inner}{{% endcall %}}"
    if kind == 10:
        return f"{{% set a %}}{inner}{{% endset %}}"
    if kind == 11:
        return f"{{% with a = {text(random, 2)} %}}{inner}{{% endwith %}}"
    if kind == 12:
        return f"{{{{ {call(random, 3)} }}}}" + inner
    if kind == 13:
        return _growth(random)
    return f"{{{{ {text(random, 3)} }}}}" + inner


def _growth(random: Random) -> str:
    """Return a loop in which a value grows, and a use of the value."""
    name, first = random.choice((("s", "'ab'"), ("l", "[1, 'a']"), ("n", "3")))
    grown = {
        "s": (
            "ns.s ~ ns.s",
            "ns.s + ns.s",
            "ns.s.replace('a', ns.s)",
            "h(ns.s)",
            "[ns.s, ns.s] | join(ns.s)",
            "ns.s * 3",
        ),
        "l": (
            "ns.l + ns.l",
            "[ns.l, ns.l]",
            "(ns.l, ns.l)",
            "f2(ns.l, ns.l)",
            "ns.l * 2",
            "[ns.l] | map('string') | list",
        ),
        "n": ("ns.n * ns.n", "ns.n ** 3", "ns.n + ns.n", "ns.n // 1 * 9"),
    }[name]
    given = "{% macro f2() %}{% set ns.l = [varargs] %}{% endmacro %}"
    spread = "{% macro f3() %}{% set ns.l = varargs %}{% endmacro %}"
    way = f"{{% set ns.{name} = {random.choice(grown)} %}}"
    if name == "l" and random.random() < 0.6:
        way = random.choice(
            ("{{ f2(ns.l, ns.l) }}", "{{ f3(ns.l, ns.l) }}", "{{ f3(*ns.l) }}", "{{ g(u=ns.l, v=ns.l, w=ns.l) }}")
        )
    use = random.choice(
        (f"ns.{name} == ns.{name}", f"ns.{name} | string | length", f"ns.{name} in [ns.{name}]", f"ns.{name}")
    )
    loop = f"{{% for i in range({random.choice((5, 20, 41, 60))}) %}}{way}{{% endfor %}}"
    return f"{given}{spread}{{% set ns.{name} = {first} %}}{loop}{{{{ {use} }}}}"


def text(random: Random, depth: int) -> str:
    """Return an expression that is mostly a string."""
    if depth == 0 or random.random() < 0.2:
        return random.choice(_TEXTS)
    one, kind = text(random, depth - 1), random.randrange(14)
    if kind < 3:
        return f"({one} {random.choice(('~', '+'))} {text(random, depth - 1)})"
    if kind == 3:
        return f"({one} * {random.choice(('2', '3', '50', '9999', '10**7'))})"
    if kind == 4:
        return f"({one}).{random.choice(_METHODS)}"
    if kind == 5:
        return f"({one}).replace({random.choice(_TEXTS)}, {text(random, depth - 1)})"
    if kind == 6:
        return (
            f"({one}) | {random.choice(('upper', 'trim', 'title', 'tojson', 'string', 'safe', 'lower', 'capitalize'))}"
        )
    if kind == 7:
        return f"({sequence(random, depth - 1)}) | join({one})"
    if kind == 8:
        return f"({one})[{random.choice(('1:', ':-1', '::-1', '0:99:2', ':10**9'))}]"
    if kind == 9:
        return f"({one} if {truth(random, depth - 1)} else {text(random, depth - 1)})"
    if kind == 10:
        return f"({sequence(random, depth - 1)}) | {random.choice(('string', 'tojson'))}"
    if kind == 11:
        return call(random, depth - 1)
    if kind == 12:
        return f"{number(random, depth - 1)} | string"
    return f"({one}).split({random.choice(_TEXTS[:4])}) | {random.choice(('first', 'last', 'join', 'length | string'))}"


def call(random: Random, depth: int) -> str:
    """Return a call of a macro with named and unnamed arguments."""
    one, other, several = text(random, depth - 1) if depth > 0 else "a", random.choice(_TEXTS), random.choice(_LISTS)
    return random.choice(
        (
            f"f({one}, {other}, {several})",
            f"f(*{several})",
            f"f({', '.join([one] * 20)})",
            f"g({one}, x={other}, y={several})",
            f"g(**{random.choice(('d', 'ns.d', 'messages[0]'))})",
            f"h({one})",
            f"h(h({one}))",
            f"h(f({one}, {several}))",
        )
    )


def number(random: Random, depth: int) -> str:
    """Return an expression that is mostly a number."""
    if depth <= 0 or random.random() < 0.3:
        return random.choice(_NUMBERS)
    one, other = number(random, depth - 1), number(random, depth - 1)
    filtered = f"({one}) | {random.choice(('abs', 'int', 'float'))}"
    counted = f"({text(random, depth - 1)}) | length"
    ended = f"({sequence(random, depth - 1)}) | {random.choice(('length', 'first', 'last'))}"
    arithmetic = f"({one} {random.choice(('+', '-', '*', '//', '%', '**'))} {other})"
    return random.choice((arithmetic, arithmetic, filtered, counted, ended))


def sequence(random: Random, depth: int) -> str:
    """Return an expression that is mostly a list."""
    if depth <= 0 or random.random() < 0.3:
        return random.choice(_LISTS)
    one = sequence(random, depth - 1)
    return random.choice(
        (
            f"({one} + {random.choice(_LISTS)})",
            f"({one}) | {random.choice(('list', 'sort', 'unique | list', 'reverse | list', 'select | list'))}",
            f"({one}) | map({random.choice(('string', 'upper', 'length', 'list', 'default'))!r}) | list",
            f"messages | map(attribute={random.choice(('role', 'content', 'x'))!r}) | list",
            f"messages | {random.choice(('selectattr', 'rejectattr'))}('role', 'equalto', {text(random, 0)}) | list",
            f"({text(random, depth - 1)}).{random.choice(('split()', 'splitlines()', 'partition(a)', 'rsplit(b, 1)'))}",
            f"[{text(random, depth - 1)}, {number(random, depth - 1)}, {one}]",
            f"({one})[{random.choice(('1:', '::-1', ':2'))}]",
            f"{random.choice(('d', 'ns.d', 'messages[0]'))}.{random.choice(('items()', 'keys()', 'values()'))} | list",
            f"{random.choice(('d', 'ns.d'))} | dictsort",
            f"({one}) * {random.choice(('2', '99', '10**8'))}",
        )
    )


def truth(random: Random, depth: int) -> str:
    """Return an expression that is mostly a boolean."""
    if depth <= 0:
        return random.choice(("true", "loop is defined", "a", "l", "x is defined", "messages | length > 1"))
    one, other = text(random, depth - 1), text(random, depth - 1)
    return random.choice(
        (
            f"{one} == {other}",
            f"{one} in {other}",
            f"{number(random, depth - 1)} {random.choice(('<', '>=', '!='))} {number(random, depth - 1)}",
            f"{sequence(random, depth - 1)} == {sequence(random, depth - 1)}",
            f"{one} in {sequence(random, depth - 1)}",
            f"not {truth(random, depth - 1)}",
            f"({truth(random, depth - 1)} and {truth(random, depth - 1)})",
            f"{one} is {random.choice(('string', 'defined', 'mapping', 'iterable', 'none', 'number', 'sequence'))}",
            f"({one}).startswith({other})",
        )
    )
