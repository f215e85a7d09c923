"""Help texts of options, arguments, commands and settings: short, with one rule of punctuation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from qwchat.cli import app
from qwchat.settings.specs import SETTING_SPECS

MAX_HELP = 60


def commands(command: Any, name: str = "qwchat") -> Iterator[tuple[str, Any]]:
    """Yield each command with the words that call it."""
    yield name, command
    for word, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{name} {word}")


def helps() -> dict[str, str]:
    """Return every help text by the command, option or setting that it explains."""
    found = {f"setting {spec.name}": spec.help for spec in SETTING_SPECS}
    for name, command in commands(app.make_command_line(completing=False)):
        found[name] = command.help.split("\n")[0]
        params = command.get_params(typer.Context(command))
        found |= {f"{name} {param.name}": param.help for param in params}
    return found


@pytest.mark.parametrize(("name", "text"), helps().items(), ids=helps())
def test_a_help_text_fits_and_ends_without_a_full_stop(name: str, text: str) -> None:
    assert 0 < len(text) <= MAX_HELP, len(text)
    assert not text.endswith(".")
    assert text[0].isupper() or text.startswith("$")
