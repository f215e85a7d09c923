"""Assumptions of `qwchat.cli.typer_internals` about Typer and the Click in it."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Any, Literal

import pytest
import typer

from qwchat.cli import typer_internals
from qwchat.cli.typer_commands import CliCommand, CliGroup
from tests.clocks import PATIENCE_SECONDS


def application() -> typer.Typer:
    app = typer.Typer(cls=CliGroup, rich_markup_mode=None)

    @app.callback()
    def root() -> None:
        """Hold commands."""

    @app.command("take", cls=CliCommand)
    def take(
        word: str = "a", number: int = 1, kind: Annotated[Literal["x", "y"], typer.Option()] = "x", flag: bool = False
    ) -> int:
        assert (type(word), type(number), type(kind), type(flag)) == (str, int, str, bool)
        return number

    return app


def run(*words: str) -> Any:
    return application()(words, prog_name="program", standalone_mode=False)


def test_arguments_are_converted() -> None:
    assert run("take", "--number", "7", "--word", "12", "--kind", "y", "--flag") == 7


@pytest.mark.parametrize(
    ("words", "part", "command"),
    [
        (("take", "--number", "x"), "'x' is not a whole number", "program take"),
        (("take", "--kind", "z"), "'z' is not one of x, y", "program take"),
        (("take", "--no-such"), "--no-such", "program take"),
        (("take", "--number"), "--number", None),  # Typer does not name the command of an option without a value.
        (("take", "extra"), "(extra)", "program take"),
    ],
)
def test_all_parser_errors_have_one_base_class(words: tuple[str, ...], part: str, command: str | None) -> None:
    with pytest.raises(typer_internals.PARSER_ERROR) as caught:
        run(*words)
    message, command_path = typer_internals.error_text(caught.value)
    assert part in message
    assert command_path == command


def test_other_errors_do_not_have_that_base_class() -> None:
    assert issubclass(typer.BadParameter, typer_internals.PARSER_ERROR)
    assert typer_internals.PARSER_ERROR.__name__ == "ClickException"
    assert not issubclass(typer.Exit, typer_internals.PARSER_ERROR)
    assert not issubclass(OSError, typer_internals.PARSER_ERROR)


def test_a_parameter_keeps_its_adapter_where_it_is_replaced() -> None:
    command = typer.main.get_command(application())
    param = command.commands["take"].params[0]  # type: ignore[attr-defined]
    assert hasattr(param, "_runtime_param"), "Typer keeps its adapters elsewhere: Pydantic would be imported"
    kept = typer_internals.without_adapters([param])[0]
    assert kept.get_runtime_param().coerce("a", param, None) == "a"


def test_no_pydantic_is_imported_for_options() -> None:
    program = (
        "import sys\nfrom tests.test_typer import run\nassert run('take', '--number', '3') == 3\n"
        "sys.exit('pydantic' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], timeout=PATIENCE_SECONDS, check=False)
    assert ran.returncode == 0
