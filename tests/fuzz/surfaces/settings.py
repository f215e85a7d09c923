"""Settings: the user's file, a project's file, personas and variables."""

from __future__ import annotations

from random import Random

from qwchat.settings.specs import SETTING_SPECS
from tests.fuzz import mutations
from tests.fuzz.base import QUESTION, Base
from tests.fuzz.case import OK, USAGE, Case, Command, Content, Files, command

NAME = "settings"
USER, PROJECT, PERSONA = "config/config.toml", "work/.qwchat.toml", "config/personas/some.toml"
_COMMANDS: tuple[Command, ...] = (
    command("config", "show", "--json", codes=(OK, USAGE), json=True),
    command("config", "show", codes=(OK, USAGE)),
    command("config", "check", codes=(OK, 1, USAGE), most_lines=500),  # one line per mistake
    command("config", "get", "temp", codes=(OK, 1, USAGE)),
    command("config", "set", "temp", "0.5", codes=(OK, 1, USAGE)),
    command("config", "set", "system", "x", codes=(OK, 1, USAGE)),
)
_ASKING = (
    command("-p", "hi", "-m", "{case}/model", *QUESTION, codes=(OK, USAGE, 3, 4, 6)),
    command("-p", "hi", "-m", "{case}/model", "--as", "some", *QUESTION, codes=(OK, USAGE, 3, 4, 6)),
)
_DATES = ("1979-05-27T07:32:00Z", "1979-05-27", "07:32:00", "9999-12-31T23:59:60Z", "0000-01-01")
_WORDS = ("auto", "none", "on", "off", "random", "plain", "mini", "some", "0", "1", "-1", "NaN", "1e400", "json", "q8")


def make(random: Random, number: int, base: Base) -> Case:
    """Make one case."""
    files: Files = {}
    for path in random.sample((USER, PROJECT, PERSONA), random.choice((1, 1, 2, 3))):
        files[path] = _content(random)
    variables = {
        random.choice(SETTING_SPECS).variable: random.choice(
            (*_WORDS, mutations.text(random).replace("\0", ""), "9" * 500)
        )
        for _ in range(random.choice((0, 0, 1, 2)))
    }
    variables = {name: text.encode("utf-8", "replace").decode() for name, text in variables.items()}
    variables.pop("QWCHAT_THREADS", None)
    asking = random.random() < 0.15
    commands = (random.choice(_ASKING if asking else _COMMANDS),)
    copies = (("model", base.model),) if asking else ()
    return Case(NAME, number, "+".join(sorted(files)), files, commands, variables, copies)


def _content(random: Random) -> Content:
    kind = random.random()
    text = document(random).encode("utf-8", "surrogatepass")
    if kind < 0.05:
        return mutations.strange_file(random, text)
    return mutations.mutate_bytes(random, text) if kind < 0.15 else text


def document(random: Random) -> str:
    """Return a TOML file that is valid or almost valid."""
    if random.random() < 0.05:
        return _big(random)
    lines = [_line(random) for _ in range(random.choice((0, 1, 1, 2, 3, 8)))]
    return random.choice(("\n", "\n", "\n", "\r\n", "\n\n", "\r")).join(lines)


def _line(random: Random) -> str:
    kind = random.randrange(14)
    key = random.choice(SETTING_SPECS).name
    if kind < 8:
        return f"{key} = {value(random)}"
    if kind == 8:
        return f"{_key(random)} = {value(random)}"
    if kind == 9:
        return random.choice(
            (f"[{_key(random)}]", f"[[{_key(random)}]]", "[variables]", f"[variables]\nx = {value(random)}")
        )
    if kind == 10:
        return random.choice(
            ("# a comment", "#" * 2_000, "", "=", "[", "]", '"', "'''", "\\", "a", "a =", "= 1", "a.b.c")
        )
    if kind == 11:
        return ".".join([key, *random.choices("abcde", k=random.choice((1, 3, 30)))]) + f" = {value(random)}"
    if kind == 12:
        return f'system = """{mutations.text(random)}{{name}} {{{{}}}} {{x"""'
    return f'"{key}" = {value(random)}\n{key} = {value(random)}'


def _key(random: Random) -> str:
    return random.choice(
        (
            random.choice(SETTING_SPECS).name,
            "description",
            "variables",
            '""',
            '"a b"',
            '"\\u0000"',
            "a.b",
            '"x"' * 3,
            "_" * 300,
        )
    )


def value(random: Random, depth: int = 3) -> str:
    """Return a TOML value."""
    kind = random.randrange(12 if depth else 10)
    if kind < 3:
        made = random.choice(mutations.NUMBERS)
        return str(made).replace("e-320", "e-9").replace("1" + "0" * 400, "1" * 400)
    if kind == 3:
        return random.choice(
            ("0xff", "0x" + "f" * 3_000, "0o777", "0b1", "1_000", "1__0", "+1", "00", "1e1000", "-0.0", "nan", "inf")
        )
    if kind == 4:
        return random.choice(("true", "false", "True", "yes", "null"))
    if kind == 5:
        return random.choice(_DATES)
    if kind < 9:
        text = random.choice((random.choice(_WORDS), mutations.text(random)[:500]))
        return random.choice((_quoted(text), f"'{text}'", f'"""{text}"""', f"'''{text}'''", f'"{text}"'))
    if kind == 9:
        return random.choice(('"\\ud800"', '"\\UFFFFFFFF"', '"\\u0000"', '"\\u202e"', '"\\u001b[31m"', '"\\x41"'))
    if kind == 10:
        return "[" + ", ".join(value(random, depth - 1) for _ in range(random.choice((0, 1, 2, 9)))) + "]"
    return "{" + ", ".join(f"k{n} = {value(random, depth - 1)}" for n in range(random.choice((0, 1, 3)))) + "}"


def _quoted(text: str) -> str:
    import json

    return json.dumps(text)


def _big(random: Random) -> str:
    """Return a file near or above the size limit."""
    return random.choice(
        (
            ".".join(["a"] * 20_000) + " = 1",
            "\n".join(f"{'a.' * 40}k{n} = 1" for n in range(400)),
            "a = " + "[" * 20_000 + "]" * 20_000,
            "a = " + "{a = " * 5_000 + "1" + "}" * 5_000,
            "temp = " + "1" * 60_000,
            'system = "' + "x" * 60_000 + '"',
            'system = "' + "x" * 70_000 + '"',
            "\n".join(f"[{'a.' * (n % 50)}b{n}]" for n in range(900)),
            "\n".join(f"[[{'a.' * 30}b]]" for n in range(900)),
            "\n".join(f"k{n} = 1" for n in range(6_000)),
            "temp = 0.5\n" * 5_000,
            "stop = [" + '"x", ' * 12_000 + "]",
        )
    )
