"""Limits of TOML: too complex text is refused before parsing, also if strings and comments hide it."""

from __future__ import annotations

import time
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwchat.errors import UsageError
from qwchat.settings import config_files, editing, personas, toml
from qwchat.settings.specs import find_spec

NEWLINES = '"""\n' + "\n" * 50 + '"""'

LIMITS = [
    ("a" + ".a" * 20_000 + " = 1", "more than 4 parts in one key"),
    ("a" + " . a" * 10_000 + " = 1", "more than 4 parts in one key"),
    ('"a"' + ".'a'" * 10_000 + " = 1", "more than 4 parts in one key"),
    ("[a" + ".a" * 20_000 + "]", "more than 4 parts in one key"),
    ("[[a" + ".a" * 20_000 + "]]", "more than 4 parts in one key"),
    ("x = {a" + ".a" * 20_000 + " = 1}", "more than 4 parts in one key"),
    ("x = " + "[" * 20_000, "more than 8 levels of lists and tables"),
    ("x = " + "[\n" * 20_000, "more than 8 levels of lists and tables"),
    ("x = " + "{a = " * 10_000, "more than 8 levels of lists and tables"),
    ("x = " + "[{a = " * 8_000, "more than 8 levels of lists and tables"),
    ("".join(f"k{number} = 1\n" for number in range(5_000)), "more than 1,000 keys"),
    ("x = [" + "{a = 1}," * 5_000 + "]", "more than 1,000 keys"),
    ("".join(f"[k{number}]\n" for number in range(5_000)), "more than 50 tables"),
    ("".join(f" \t[[k]] # {number}\n" for number in range(2_000)), "more than 50 tables"),
    ("x = 0x" + "f" * 50_000, "a word of 50,002 characters"),
    ("k" * 50_000 + " = 1", "a word of 50,000 characters"),
]
# Text that could make a scanner mistake the rest of a file for a string, a comment or a list.
DISGUISES = [
    "",
    "# \" ' [ {\n",
    's = "# \' [ { \\" \\\\"\n',
    "s = '# \" [ { \\'\n",
    's = """\n[ \' # "" \\""" \n"""\n',
    's = """""x"""""\n',
    "s = '''[ \" # '' \\'''\n",
    "s = '''''x'''''\n",
    's = ["]", "{", \'[\'] # ]\n',
    's = ""\n',
    "'\"' = 1\n",
    '"\'[" = 1\n',
]


@pytest.mark.parametrize(("text", "expected"), LIMITS)
@pytest.mark.parametrize("before", DISGUISES)
def test_too_complex_text_is_refused_before_parsing(
    monkeypatch: pytest.MonkeyPatch, before: str, text: str, expected: str
) -> None:
    tomllib.loads(before)
    monkeypatch.setattr(tomllib, "loads", lambda text: pytest.fail("parsed"))
    with pytest.raises(UsageError, match=rf"^file\.toml:\d+: {expected}") as error:
        toml.parse(before + text, "file.toml")
    assert len(str(error.value)) < 120


@pytest.mark.parametrize("text", [text for text, _ in LIMITS])
def test_strings_and_comments_may_contain_anything(text: str) -> None:
    quoted = text.replace("\\", "").replace("'", "").replace('"', "")
    for whole in (f"s = '''{quoted}'''", f's = """{quoted}"""', *(f"# {line}" for line in quoted.split("\n")[:1])):
        assert toml.parse(f"{whole}\na = 1", "x") == tomllib.loads(f"{whole}\na = 1")


@pytest.mark.parametrize("text", [text for text, _ in LIMITS])
def test_every_reader_of_toml_checks_the_limits(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    (tmp_path / "personas").mkdir()
    (tmp_path / "personas" / "x.toml").write_text(text)
    for read in (
        lambda: config_files.read(path),
        lambda: editing.change(path, find_spec("temp"), 1.0),
        lambda: editing.remove(path, find_spec("temp")),
        lambda: personas.read("x", {"QWCHAT_CONFIG": str(tmp_path)}),
    ):
        with pytest.raises(UsageError, match=r"\.toml:\d+: .*more than [\d,]+"):
            read()
    assert find_spec("stop").parse(f"[{text}]", "--stop") == (f"[{text}]",), "a string may have brackets"


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    [
        *("1,", "1,\n", '"x",', "{},", "[],", "[1,[2]],", "1.5,", "1979-05-27,", "1, #\n"),
    ],
)
@pytest.mark.parametrize("edit", [False, True])
def test_accepted_text_is_parsed_in_linear_time(tmp_path: Path, unit: str, edit: bool) -> None:
    def cost(count: int) -> float:
        path = tmp_path / "config.toml"
        path.write_text("x = [" + unit * count + "]\n")
        began = time.process_time()
        editing.change(path, find_spec("temp"), 1.0) if edit else config_files.read(path).location("y")
        return time.process_time() - began

    cost(10)
    assert min(cost(4_000) for _ in range(3)) < 40 * min(cost(400) for _ in range(5))  # linear: 10, not 100


@pytest.mark.parametrize(
    "text",
    [
        '"' * 60_000,
        '"""' + '\\"""' * 15_000,
        "'" * 59_999,
        '"""' + "'''\\\n" * 8_000,
        " " * 60_000 + "x",
        '"a' * 20_000,
    ],
)
def test_unterminated_strings_are_scanned_once(text: str) -> None:
    def cost(text: str) -> float:
        began = time.process_time()
        with pytest.raises(UsageError):
            toml.parse(f"a = {text}", "x")
        toml.line_of(f"a = {text}", ("b",))
        return time.process_time() - began

    assert min(cost(text) for _ in range(3)) < 40 * min(cost(text[: len(text) // 10]) for _ in range(5))


def test_line_numbers_of_keys() -> None:
    text = f"""\
# temp = 1
system = {NEWLINES}
stop = [ # list
  "temp = 2", {{ temp = 3 }},
]
temp = 4
"quoted" = 5

[variables] # table
temp = "x"
a.b = "y"
[[more]]
inline = {{ deep = 1 }}
"""
    lines = text.split("\n")
    tomllib.loads(text)
    for keys, shown in {
        ("system",): "system =",
        ("stop",): "stop =",
        ("temp",): "temp = 4",
        ("quoted",): '"quoted"',
        ("variables",): "[variables]",
        ("variables", "temp"): 'temp = "x"',
        ("variables", "a"): "a.b",
        ("variables", "absent"): "[variables]",
        ("more",): "[[more]]",
        ("more", "inline", "deep"): "inline",
    }.items():
        line = toml.line_of(text, keys)
        assert line is not None
        assert lines[line - 1].startswith(shown), keys
    assert toml.line_of(text, ("absent",)) is None


@given(st.text(st.sampled_from("ab.=[]{}\"'#\\\n ,1"), max_size=60))
@example('a = """\\')
@example("a = '''''''")
def test_the_scanner_agrees_with_the_parser(text: str) -> None:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        with pytest.raises(UsageError):
            toml.parse(text, "x")
        return
    with suppress(UsageError):  # Above a limit, such as a key of five parts.
        assert toml.parse(text, "x") == values
    for key in values:
        line = toml.line_of(text, (key,))
        assert line is None or key in text.split("\n")[line - 1] or not key.isalnum()
