"""Types of setting values: parsing, checking, limits and formatting.

`parse` reads a user's text (a flag, a variable, `/set`) and `check` a value from a TOML file. Both raise UsageError
that begins with `where`, the name of the flag, variable or key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NoReturn, Protocol

from quant.json_fields import short_repr
from qwchat.errors import UsageError
from qwchat.limits import MAX_INTEGER
from qwchat.settings import toml

SettingValue = float | int | bool | str | tuple[str, ...] | None
"""Value of a setting."""

_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?", re.ASCII)
_BOOLEAN_WORDS = {
    "on": True,
    "true": True,
    "yes": True,
    "1": True,
    "off": False,
    "false": False,
    "no": False,
    "0": False,
}


class ValueType(Protocol):
    """Interface of the value types."""

    @property
    def metavar(self) -> str:
        """Placeholder for a value in the help."""

    @property
    def accepts(self) -> str:
        """Description of the accepted values."""

    @property
    def range_text(self) -> str:
        """Range of a number in words; empty for other types."""

    @property
    def choices(self) -> tuple[str, ...]:
        """The possible values, if they can be listed."""

    def parse(self, text: str, where: str) -> SettingValue:
        """Return the value of `text`."""

    def check(self, value: object, where: str) -> SettingValue:
        """Return the value from a TOML file."""

    def to_text(self, value: SettingValue) -> str:
        """Return `value` as a user would type it."""

    def to_toml(self, value: SettingValue) -> SettingValue | list[str]:
        """Return `value` for a TOML file."""


def reject(where: str, wanted: str, value: object) -> NoReturn:
    """Raise the UsageError that says what `where` must be."""
    number = isinstance(value, float) and math.isfinite(value)
    raise UsageError(f"{where} must be {wanted}, not {f'{value:g}' if number else short_repr(value)}")


@dataclass(frozen=True)
class Number:
    """A number from `low` to `high`, without `low` itself if `above` is set."""

    low: float
    high: float = math.inf
    above: bool = False
    metavar: str = "X"
    choices: ClassVar[tuple[str, ...]] = ()

    @property
    def accepts(self) -> str:
        """Accepted values, in words."""
        return f"a number {self.range_text}".replace("at least", "of at least")

    @property
    def range_text(self) -> str:
        """Range in words."""
        return _range_text(self.low, self.high, above=self.above)

    def parse(self, text: str, where: str) -> SettingValue:
        """Parse a user's `text`."""
        try:
            number = float(text)
        except ValueError:
            reject(where, self.accepts, text)
        return self._check_range(number, where)

    def check(self, value: object, where: str) -> SettingValue:
        """Check a value from a TOML file."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            reject(where, self.accepts, value)
        try:
            return self._check_range(float(value), where)
        except OverflowError:
            reject(where, self.range_text, value)

    def _check_range(self, number: float, where: str) -> float:
        low_enough = self.low < number if self.above else self.low <= number
        if not (math.isfinite(number) and low_enough and number <= self.high):
            reject(where, self.range_text, number)
        return number

    def to_text(self, value: SettingValue) -> str:
        """Format `value` for the user."""
        return f"{value:g}"

    def to_toml(self, value: SettingValue) -> SettingValue:
        """Format `value` for a TOML file."""
        return value


@dataclass(frozen=True)
class Integer:
    """An integer from `low` to `high`, or to MAX_INTEGER if `high` is None."""

    low: int
    high: int | None = None
    metavar: str = "N"
    choices: ClassVar[tuple[str, ...]] = ()

    @property
    def accepts(self) -> str:
        """Accepted values, in words."""
        return f"a whole number {self.range_text}".replace("at least", "of at least")

    @property
    def range_text(self) -> str:
        """Range in words."""
        return _range_text(self.low, math.inf if self.high is None else self.high)

    def parse(self, text: str, where: str) -> SettingValue:
        """Parse a user's `text`."""
        try:
            number = int(text)
        except ValueError:
            reject(where, self.accepts, text)
        return self._check_range(number, where)

    def check(self, value: object, where: str) -> SettingValue:
        """Check a value from a TOML file."""
        if isinstance(value, bool) or not isinstance(value, int):
            reject(where, self.accepts, value)
        return self._check_range(value, where)

    def _check_range(self, number: int, where: str) -> int:
        if number < self.low or (self.high is not None and number > self.high):
            reject(where, self.range_text, number)
        if self.high is None and number > MAX_INTEGER:
            reject(where, f"at most {MAX_INTEGER}", number)
        return number

    def to_text(self, value: SettingValue) -> str:
        """Format `value` for the user."""
        return str(value)

    def to_toml(self, value: SettingValue) -> SettingValue:
        """Format `value` for a TOML file."""
        return value


@dataclass(frozen=True)
class Boolean:
    """On or off."""

    accepts: ClassVar[str] = "on or off"
    range_text: ClassVar[str] = ""
    metavar: ClassVar[str] = "on|off"
    choices: ClassVar[tuple[str, ...]] = ("on", "off")

    def parse(self, text: str, where: str) -> SettingValue:
        """Parse a user's `text`."""
        if text.lower() not in _BOOLEAN_WORDS:
            reject(where, self.accepts, text)
        return _BOOLEAN_WORDS[text.lower()]

    def check(self, value: object, where: str) -> SettingValue:
        """Check a value from a TOML file."""
        return value if isinstance(value, bool) else self.parse(str(value), where)

    def to_text(self, value: SettingValue) -> str:
        """Format `value` for the user."""
        return "on" if value else "off"

    def to_toml(self, value: SettingValue) -> SettingValue:
        """Format `value` for a TOML file."""
        return value


@dataclass(frozen=True)
class Choice:
    """One of `choices`."""

    choices: tuple[str, ...]
    range_text: ClassVar[str] = ""

    @property
    def metavar(self) -> str:
        """Placeholder in the help."""
        return "|".join(self.choices)

    @property
    def accepts(self) -> str:
        """Accepted values, in words."""
        *others, last = self.choices
        return f"{', '.join(others)} or {last}"

    def parse(self, text: str, where: str) -> SettingValue:
        """Parse a user's `text`."""
        if text not in self.choices:
            reject(where, self.accepts, text)
        return text

    def check(self, value: object, where: str) -> SettingValue:
        """Check a value from a TOML file."""
        if not isinstance(value, str):
            reject(where, self.accepts, value)
        return self.parse(value, where)

    def to_text(self, value: SettingValue) -> str:
        """Format `value` for the user."""
        return str(value)

    def to_toml(self, value: SettingValue) -> SettingValue:
        """Format `value` for a TOML file."""
        return value


@dataclass(frozen=True)
class IntegerChoice:
    """One of some whole numbers."""

    values: tuple[int, ...]
    range_text: ClassVar[str] = ""

    @property
    def choices(self) -> tuple[str, ...]:
        """The values as text."""
        return tuple(map(str, self.values))

    @property
    def metavar(self) -> str:
        """Placeholder in the help."""
        return "|".join(self.choices)

    @property
    def accepts(self) -> str:
        """Accepted values, in words."""
        return Choice(self.choices).accepts

    def parse(self, text: str, where: str) -> SettingValue:
        """Parse a user's `text`."""
        return int(Choice(self.choices).parse(text, where))  # type: ignore[arg-type]

    def check(self, value: object, where: str) -> SettingValue:
        """Check a value from a TOML file."""
        if isinstance(value, bool) or not isinstance(value, int) or value not in self.values:
            reject(where, self.accepts, value)
        return value

    def to_text(self, value: SettingValue) -> str:
        """Format `value` for the user."""
        return str(value)

    def to_toml(self, value: SettingValue) -> SettingValue:
        """Format `value` for a TOML file."""
        return value


@dataclass(frozen=True)
class DeviceName:
    """Name of a device: `auto`, `cpu`, `cuda`, or `cuda:` and the number of a GPU."""

    metavar: ClassVar[str] = "auto|cpu|cuda[:N]"
    accepts: ClassVar[str] = "auto, cpu, cuda, or cuda:N with the number of a GPU"
    choices: ClassVar[tuple[str, ...]] = ("auto", "cpu", "cuda")
    range_text: ClassVar[str] = ""

    def parse(self, text: str, where: str) -> SettingValue:
        """Parse a user's `text`."""
        if not _DEVICE.fullmatch(text):
            reject(where, self.accepts, text)
        return text

    def check(self, value: object, where: str) -> SettingValue:
        """Check a value from a TOML file."""
        if not isinstance(value, str):
            reject(where, self.accepts, value)
        return self.parse(value, where)

    def to_text(self, value: SettingValue) -> str:
        """Format `value` for the user."""
        return str(value)

    def to_toml(self, value: SettingValue) -> SettingValue:
        """Format `value` for a TOML file."""
        return value


@dataclass(frozen=True)
class Text:
    """Any string."""

    metavar: str = "TEXT"
    accepts: str = "a string"
    choices: ClassVar[tuple[str, ...]] = ()
    range_text: ClassVar[str] = ""

    def parse(self, text: str, where: str) -> SettingValue:
        """Parse a user's `text`."""
        return text

    def check(self, value: object, where: str) -> SettingValue:
        """Check a value from a TOML file."""
        if not isinstance(value, str):
            reject(where, self.accepts, value)
        return value

    def to_text(self, value: SettingValue) -> str:
        """Format `value` for the user."""
        return str(value)

    def to_toml(self, value: SettingValue) -> SettingValue:
        """Format `value` for a TOML file."""
        return value


@dataclass(frozen=True)
class TextList:
    """Any number of non-empty strings: one as it is, several as a TOML list (`["a", "b"]`)."""

    metavar: str = "TEXT"
    range_text: ClassVar[str] = ""
    accepts: ClassVar[str] = 'a non-empty string or a list of them, such as ["a", "b"]'
    choices: ClassVar[tuple[str, ...]] = ()

    def parse(self, text: str, where: str) -> SettingValue:
        """Parse a user's `text`."""
        if text.startswith("[") and text.endswith("]"):
            try:
                listed = toml.parse(f"value = {text}", where)["value"]
            except UsageError:  # Not a list, but a string with brackets.
                return (text,)
            return self.check(listed, where)
        return self.check(text, where)

    def check(self, value: object, where: str) -> SettingValue:
        """Check a value from a TOML file."""
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, Sequence):
            reject(where, self.accepts, value)
        for text in listed:
            if not isinstance(text, str) or not text:
                reject(where, self.accepts, text)
        return tuple(listed)

    def to_text(self, value: SettingValue) -> str:
        """Format `value` for the user."""
        return " ".join(repr(text) for text in value) if isinstance(value, tuple) else repr(value)

    def to_toml(self, value: SettingValue) -> SettingValue | list[str]:
        """Format `value` for a TOML file."""
        return list(value) if isinstance(value, tuple) else value


def _range_text(low: float, high: float, *, above: bool = False) -> str:
    if high == math.inf:
        return f"above {low:g}" if above else f"at least {low:g}"
    return f"{'above' if above else 'from'} {low:g} to {high}"
