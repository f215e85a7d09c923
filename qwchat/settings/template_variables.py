"""Value type of the setting for variables of the chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from quant.wording import ArgumentMessage
from qwchat.errors import UsageError
from qwchat.settings.value_types import SettingValue, TextList


@dataclass(frozen=True)
class TemplateVariables(TextList):
    """Assignments `NAME=VALUE`, with JSON values; in a TOML file also a table. Stored as `NAME=JSON`."""

    metavar: str = "NAME=VALUE"
    accepts: ClassVar[str] = 'NAME=VALUE with a JSON value, a list of them, or a table such as {name = "value"}'

    def check(self, value: object, where: str) -> SettingValue:
        """Check a value from a TOML file."""
        from qwchat.text.template.variables import format_variable, parse_variables

        listed = () if isinstance(value, Mapping) else super().check(value, where)
        assert isinstance(listed, tuple)
        try:
            variables = value if isinstance(value, Mapping) else parse_variables(listed)
            return tuple(format_variable(name, each) for name, each in variables.items())
        except UsageError as error:
            raise UsageError(ArgumentMessage(f"{where}: ", error)) from error

    def to_text(self, value: SettingValue) -> str:
        """Format `value` for the user."""
        return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
