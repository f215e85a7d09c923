"""Value types of the settings that constrain a reply. Values are checked as soon as they are set.

Values are strings, so that a session can store them: separated choices, a regular expression, or a JSON schema as JSON,
wherever it was read from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from quant.units import binary_size
from quant.wording import ArgumentMessage
from qwchat.errors import UsageError
from qwchat.limits import MAX_CONSTRAINT_BYTES
from qwchat.settings.value_types import SettingValue, Text, TextList, reject
from qwchat.text_files import expand_path


@dataclass(frozen=True)
class ChoiceList(TextList):
    r"""Strings separated by commas; `\,` is a comma."""

    metavar: str = "A,B,…"
    accepts: ClassVar[str] = "strings separated by commas"

    def parse(self, text: str, where: str) -> SettingValue:
        """Parse a user's `text`."""
        return self.check(text, where)

    def check(self, value: object, where: str) -> SettingValue:
        """Check a value from a TOML file."""
        from qwchat.constraints import split_choices

        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, Sequence) or not all(isinstance(text, str) for text in listed):
            reject(where, self.accepts, value)
        found = split_choices(listed)
        _validate(where, lambda constraint: constraint.parse_choices(found))
        return found

    def to_text(self, value: SettingValue) -> str:
        """Format `value` for the user."""
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Regex(Text):
    """A regular expression."""

    metavar: str = "RE"
    accepts: str = "a regular expression"

    def parse(self, text: str, where: str) -> SettingValue:
        """Parse a user's `text`."""
        _validate(where, lambda constraint: constraint.regex(text))
        return text

    def check(self, value: object, where: str) -> SettingValue:
        """Check a value from a TOML file."""
        return self.parse(str(super().check(value, where)), where)


@dataclass(frozen=True)
class JsonSchema(Text):
    """A JSON schema, or the name of a file that contains one."""

    metavar: str = "SCHEMA|FILE"
    accepts: str = "a JSON schema or the name of its file"

    def parse(self, text: str, where: str) -> SettingValue:
        """Parse a user's `text`."""
        return self.check(text if _looks_like_json(text) else _read_schema_file(text, where), where)

    def check(self, value: object, where: str) -> SettingValue:
        """Return the value from a file, which must be the schema itself: files may come from strangers."""
        text = str(super().check(value, where))
        if not _looks_like_json(text):
            raise UsageError(f"{where} must be a JSON schema, which begins with {{")
        _validate(where, lambda constraint: constraint.json_schema(text))
        return text

    def to_text(self, value: SettingValue) -> str:
        """Format `value` for the user."""
        return " ".join(str(value).split())


def _looks_like_json(text: str) -> bool:
    return text.lstrip()[:1] in ("{", "[", '"') or text.strip() in ("true", "false")


def _read_schema_file(name: str, where: str) -> str:
    if not name:
        raise UsageError(f"{where} must be {JsonSchema.accepts}, not ''")
    try:
        with expand_path(name).open("rb") as file:
            data = file.read(MAX_CONSTRAINT_BYTES + 1)  # The file size is unknown for a pipe or a device.
    except OSError as error:
        raise UsageError(f"{where}: cannot read {name}: {error.strerror} (a schema begins with {{)") from error
    except ValueError as error:  # Not a valid path: a NUL or a lone surrogate.
        raise UsageError(f"{where}: {name!r} is not a valid file name (a schema begins with {{)") from error
    if len(data) > MAX_CONSTRAINT_BYTES:
        raise UsageError(f"{where}: {name} is larger than {binary_size(MAX_CONSTRAINT_BYTES)}, the limit for a schema")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: {name} is not UTF-8 text") from error
    if not _looks_like_json(text):
        raise UsageError(f"{where}: {name} does not contain a JSON schema, which begins with {{")
    return text


def _validate(where: str, make: Callable[[Any], object]) -> None:
    """Build the constraint to find errors. The message of a UsageError begins with `where`."""
    from qwchat.constraints import Constraint

    try:
        make(Constraint)
    except UsageError as error:
        raise UsageError(ArgumentMessage(f"{where}: ", error)) from error
