"""Command-line arguments, and the messages about invalid ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from qwchat.cli.app import run_app
from qwchat.cli.typer_commands import CliCommand, CliGroup, LazyCommands
from qwchat.errors import UsageError
from tests.clocks import PATIENCE_SECONDS


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-n", "x", "-p", "hi"], "invalid value for '--count' / '-n': 'x' is not a whole number"),
        (["--logprobs", "2.5", "-p", "hi"], "invalid value for '--logprobs': '2.5' is not a whole number"),
        (["bench", "--kv", "f16"], "invalid value for '--kv': 'f16' is not one of auto, f32, q8"),
        (["completion", "tcsh"], "invalid value for 'SHELL': 'tcsh' is not one of bash, zsh, fish, powershell"),
        (["convert"], "missing argument 'SOURCE'"),
        (["--tmp", "3"], "no such option: --tmp"),
        (["--debug=1"], "option '--debug' does not take a value"),
    ],
)
def test_an_invalid_argument_is_named(words: list[str], expected: str) -> None:
    with pytest.raises(UsageError) as raised:
        run_app(words)
    assert str(raised.value).startswith(expected)


def test_values_are_converted_to_their_types() -> None:
    app = typer.Typer(cls=CliGroup)
    taken: list[object] = []

    @app.callback()
    def root() -> None:
        pass

    @app.command(cls=CliCommand)
    def take(
        path: Path,
        number: int = 3,
        ratio: float | None = None,
        texts: list[str] | None = None,
        text: str | None = None,
        switch: bool | None = None,
    ) -> None:
        taken.extend((path, number, ratio, texts, text, switch))

    runner = CliRunner()
    assert runner.invoke(app, ["take", "a b", "--texts", "1", "--texts", "2", "--no-switch"]).exit_code == 0
    assert taken == [Path("a b"), 3, None, ["1", "2"], None, False]
    taken.clear()
    assert (
        runner.invoke(app, ["take", "x", "--number", "-7", "--ratio", "1e-3", "--text", "", "--switch"]).exit_code == 0
    )
    assert taken == [Path("x"), -7, 0.001, None, "", True]


def test_a_command_is_made_when_it_is_asked_for() -> None:
    made: list[str] = []

    def maker(name: str) -> Callable[[], object]:
        return lambda: made.append(name) or name

    commands = LazyCommands({name: (f"Do {name}", maker(name)) for name in ("first", "second")})
    assert [*commands] == ["first", "second"]
    assert commands.summaries == {"first": "Do first", "second": "Do second"}
    assert "second" in commands
    assert commands.get("third") is None
    assert made == []
    assert commands.get("second") == "second"
    assert made == ["second"]
    assert dict(commands.items()) == {"first": "first", "second": "second"}


@pytest.mark.parametrize(
    ("words", "imported"),
    [(["--help"], []), (["--version"], []), (["show", "--help"], ["qwchat.cli.model_options"])],
)
def test_only_the_options_of_the_command_that_runs_are_imported(words: list[str], imported: list[str]) -> None:
    program = (
        "import sys\nfrom qwchat.cli.app import run_app\n"
        f"try: run_app({words!r})\nexcept SystemExit: pass\n"
        "print(*(name for name in sys.modules if name.endswith('_options')), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert ran.returncode == 0
    assert [name for name in ran.stderr.split() if name != "qwchat.cli.engine_options"] == imported


def test_an_unsupported_type_is_a_bug() -> None:
    app = typer.Typer()

    @app.command(cls=CliCommand)
    def take(number: complex) -> None:
        pass

    result = CliRunner().invoke(app, ["1.5"])
    assert isinstance(result.exception, TypeError)
