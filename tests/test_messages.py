"""Messages name arguments; their reader sees `--ctx 4096` or `/set ctx 4096`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from quant.errors import ArgumentError
from quant.wording import Argument, ArgumentMessage, SuggestedArgument, first_argument, spell_out
from qwchat.chat import advice
from qwchat.cli import error_messages
from qwchat.errors import UsageError
from qwchat.settings.specs import SETTING_SPECS, spec_of_argument
from tests.starter import REAL, run_to_end
from tests.test_house import REPOSITORY

FLAG = re.compile(r"(?<![\w-])--(?:[a-z]|$)")
# Files that may contain a flag, and why.
SURFACES = {
    "qwchat/cli/": "the command line",
    "qwchat/cuda/kernels/__main__.py": "a command line for developers",
    "qwchat/settings/specs.py": "the one table that gives each setting its flag",
    "qwchat/chat/commands/turn_commands.py": "/retry and /edit of the chat take options of their own",
}
# Files that may ask the table for a flag, and why.
ASKING = {
    "qwchat/settings/resolve.py": "reads the flags of the command line, and keeps where each value came from",
    "qwchat/chat/chat_settings.py": "tells a person at the chat how to start the program",
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Yield path and syntax tree of each file that must not name a flag."""
    for folder in ("quant", "qwchat"):
        for file in sorted((REPOSITORY / folder).rglob("*.py")):
            name = file.relative_to(REPOSITORY).as_posix()
            if not name.startswith(tuple(SURFACES)):
                yield name, ast.parse(file.read_text("utf-8"))


def flags_in(tree: ast.Module) -> list[tuple[int, str]]:
    """Return line and text of literals that contain or begin a flag, without docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(statement.value)
        for node in ast.walk(tree)
        for statement in (node.body if isinstance(node, documented) else [])
        if isinstance(statement, ast.Expr)
    }
    # A lone "--" tests for a flag; before a value in an f-string it begins one.
    begun = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
        if FLAG.search(node.value) and (node.value != "--" or id(node) in begun)
    ]


def test_no_message_below_the_command_line_names_a_flag() -> None:
    assert [f"{name}:{line}: {text}" for name, tree in sources() for line, text in flags_in(tree)] == []


def test_only_the_command_line_asks_the_table_for_flags() -> None:
    asking = {
        name
        for name, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("flag", "flag_for")
    }
    assert asking == {*ASKING}


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ('raise UsageError("use --force")', True),
        ('raise UsageError(f"--{name} must be positive")', True),
        ('raise UsageError(f"use --{name}")', True),
        ('def f():\n    """Read --force."""', False),
        ('origin.startswith("--")', False),
        ('print("a--b, 3 -- 4")', False),
    ],
)
def test_flags_are_found(source: str, named: bool) -> None:
    assert bool(flags_in(ast.parse(source))) is named


def help_of(*command: str) -> str:
    """Return the output of `qwchat COMMAND --help` on a wide terminal without colours."""
    environment = {"COLUMNS": "200", "TERM": "dumb", "PATH": "", "NO_COLOR": "1"}
    done = run_to_end([*command, "--help"], environment, entry=REAL)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def options_in(text: str) -> set[str]:
    """Return the long options in a text, without --help."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - {"--help"}


def test_every_argument_in_a_message_has_a_flag() -> None:
    """Otherwise the message would name a flag that does not exist."""
    mentioned = {
        node.args[0].value
        for folder in ("quant", "qwchat")
        for file in (REPOSITORY / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Argument", "SuggestedArgument")
        if isinstance(node.args[0], ast.Constant)
    }
    assert {"context", "kv", "resume", "force", "variables"} <= mentioned
    known = options_in(help_of() + help_of("convert") + help_of("eval"))
    assert {str(name): error_messages.as_flag(Argument(str(name))) for name in mentioned} == {
        str(name): flag for name in mentioned if (flag := error_messages.as_flag(Argument(str(name)))) in known
    }


def test_each_setting_is_found_by_its_argument() -> None:
    assert [known.name for known in SETTING_SPECS if spec_of_argument(known.argument) is not known] == []
    assert {known.name: known.argument for known in SETTING_SPECS if known.python_argument} == {
        "temp": "temperature",
        "ctx": "context",
    }


@pytest.mark.parametrize(
    ("argument", "python", "flag", "setting"),
    [
        (Argument("context"), "context", "--ctx", "ctx"),
        (Argument("context", 4096), "context=4096", "--ctx 4096", "ctx 4096"),
        (SuggestedArgument("context", 16384), "context=16384", "--ctx 16384", "/set ctx 16384"),
        (SuggestedArgument("context", ...), "context=…", "--ctx N", "/set ctx N"),
        (SuggestedArgument("temperature", 0.7), "temperature=0.7", "--temp 0.7", "/set temp 0.7"),
        (SuggestedArgument("kv", "q8"), "kv='q8'", "--kv q8", "/set kv q8"),
        (SuggestedArgument("speculate", False), "speculate=False", "--no-speculate", "/set speculate off"),
        (SuggestedArgument("stop"), "leave stop out", "leave --stop out", "/set stop none"),
        (SuggestedArgument("top_p"), "leave top_p out", "leave --top-p out", "/set top-p default"),
        (SuggestedArgument("force", True), "force=True", "--force", "/set force on"),
        (Argument("resume"), "resume", "--resume", "resume"),
        (SuggestedArgument("use_files", False), "use_files=False", "--no-config", "/set use_files off"),
    ],
)
def test_the_command_line_and_the_chat_spell_arguments_differently(
    argument: Argument, python: str, flag: str, setting: str
) -> None:
    assert (str(argument), error_messages.as_flag(argument), advice.format_argument(argument)) == (
        python,
        flag,
        setting,
    )


def test_a_nested_message_keeps_its_arguments() -> None:
    inner = ArgumentError(ArgumentMessage("use ", SuggestedArgument("force", True)))
    outer = UsageError(ArgumentMessage("a/b: ", inner, ArgumentMessage(" or ", Argument("resume")), ""))
    assert str(outer) == "a/b: use force=True or resume"
    assert spell_out(outer, error_messages.as_flag) == "a/b: use --force or --resume"
    assert (first_argument(outer), first_argument(UsageError("plain")), first_argument(UsageError())) == (
        "force",
        None,
        None,
    )
    assert spell_out(OSError(2, "gone", "file"), error_messages.as_flag) == "[Errno 2] gone: 'file'"
