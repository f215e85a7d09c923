"""Kinds of values: what is taken, how it is read from a person's text and from a file, how it is shown.

Every kind reads text (a flag, a variable, `/set`) with `parse` and a value of a TOML file with `check`; both
raise UsageError that begins with `where`, the name of the flag, variable or key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NoReturn, Protocol

from quant.json_fields import short_repr
from qwchat.errors import UsageError
from qwchat.limits import MAX_INTEGER
from qwchat.settings import toml

SettingValue = float | int | bool | str | tuple[str, ...] | None
"""What a setting can be set to."""

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
    """What every kind of value has.

    Attributes:
        metavar: what stands for a value in the help.
        accepts: what is taken, in words.
        range_text: the range of a number in words, empty for other kinds.
        choices: the values there are, where they can be listed.
    """

    @property
    def metavar(self) -> str: ...
    @property
    def accepts(self) -> str: ...
    @property
    def range_text(self) -> str: ...
    @property
    def choices(self) -> tuple[str, ...]: ...

    def parse(self, text: str, where: str) -> SettingValue:
        """The value that `text` means."""

    def check(self, value: object, where: str) -> SettingValue:
        """The value that a TOML file states."""

    def to_text(self, value: SettingValue) -> str:
        """`value` as a person would type it."""

    def to_toml(self, value: SettingValue) -> SettingValue | list[str]:
        """`value` as a TOML file states it."""


def reject(where: str, wanted: str, value: object) -> NoReturn:
    """Raise the UsageError that says what `where` must be."""
    number = isinstance(value, float) and math.isfinite(value)
    raise UsageError(f"{where} must be {wanted}, not {f'{value:g}' if number else short_repr(value)}")


@dataclass(frozen=True)
class Number:
    """A number from `low` to `high`; `above`: not `low` itself."""

    low: float
    high: float = math.inf
    above: bool = False
    metavar: str = "X"
    choices: ClassVar[tuple[str, ...]] = ()

    @property
    def accepts(self) -> str:
        return f"a number {self.range_text}".replace("at least", "of at least")

    @property
    def range_text(self) -> str:
        return _range_text(self.low, self.high, above=self.above)

    def parse(self, text: str, where: str) -> SettingValue:
        try:
            number = float(text)
        except ValueError:
            reject(where, self.accepts, text)
        return self._check_range(number, where)

    def check(self, value: object, where: str) -> SettingValue:
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
        return f"{value:g}"

    def to_toml(self, value: SettingValue) -> SettingValue:
        return value


@dataclass(frozen=True)
class Integer:
    """A whole number from `low` to `high`; None: to what every part of the program can count with."""

    low: int
    high: int | None = None
    metavar: str = "N"
    choices: ClassVar[tuple[str, ...]] = ()

    @property
    def accepts(self) -> str:
        return f"a whole number {self.range_text}".replace("at least", "of at least")

    @property
    def range_text(self) -> str:
        return _range_text(self.low, math.inf if self.high is None else self.high)

    def parse(self, text: str, where: str) -> SettingValue:
        try:
            number = int(text)
        except ValueError:
            reject(where, self.accepts, text)
        return self._check_range(number, where)

    def check(self, value: object, where: str) -> SettingValue:
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
        return str(value)

    def to_toml(self, value: SettingValue) -> SettingValue:
        return value


@dataclass(frozen=True)
class Boolean:
    """On or off."""

    accepts: ClassVar[str] = "on or off"
    range_text: ClassVar[str] = ""
    metavar: ClassVar[str] = "on|off"
    choices: ClassVar[tuple[str, ...]] = ("on", "off")

    def parse(self, text: str, where: str) -> SettingValue:
        if text.lower() not in _BOOLEAN_WORDS:
            reject(where, self.accepts, text)
        return _BOOLEAN_WORDS[text.lower()]

    def check(self, value: object, where: str) -> SettingValue:
        return value if isinstance(value, bool) else self.parse(str(value), where)

    def to_text(self, value: SettingValue) -> str:
        return "on" if value else "off"

    def to_toml(self, value: SettingValue) -> SettingValue:
        return value


@dataclass(frozen=True)
class Choice:
    """One of `choices`."""

    choices: tuple[str, ...]
    range_text: ClassVar[str] = ""

    @property
    def metavar(self) -> str:
        return "|".join(self.choices)

    @property
    def accepts(self) -> str:
        *others, last = self.choices
        return f"{', '.join(others)} or {last}"

    def parse(self, text: str, where: str) -> SettingValue:
        if text not in self.choices:
            reject(where, self.accepts, text)
        return text

    def check(self, value: object, where: str) -> SettingValue:
        if not isinstance(value, str):
            reject(where, self.accepts, value)
        return self.parse(value, where)

    def to_text(self, value: SettingValue) -> str:
        return str(value)

    def to_toml(self, value: SettingValue) -> SettingValue:
        return value


@dataclass(frozen=True)
class Text:
    """Any text. `suggested`: values worth offering, though others are taken as well."""

    metavar: str = "TEXT"
    accepts: str = "a text"
    suggested: tuple[str, ...] = ()
    range_text: ClassVar[str] = ""

    @property
    def choices(self) -> tuple[str, ...]:
        return self.suggested

    def parse(self, text: str, where: str) -> SettingValue:
        return text

    def check(self, value: object, where: str) -> SettingValue:
        if not isinstance(value, str):
            reject(where, self.accepts, value)
        return value

    def to_text(self, value: SettingValue) -> str:
        return str(value)

    def to_toml(self, value: SettingValue) -> SettingValue:
        return value


@dataclass(frozen=True)
class TextList:
    """Any number of texts, none of them empty: one as it is, several as a TOML list (`["a", "b"]`)."""

    metavar: str = "TEXT"
    range_text: ClassVar[str] = ""
    accepts: ClassVar[str] = 'a text that is not empty, or a list of such texts as in ["a", "b"]'
    choices: ClassVar[tuple[str, ...]] = ()

    def parse(self, text: str, where: str) -> SettingValue:
        if text.startswith("[") and text.endswith("]"):
            try:
                listed = toml.parse(f"value = {text}", where)["value"]
            except UsageError:  # Brackets around anything else are a text of their own.
                return (text,)
            return self.check(listed, where)
        return self.check(text, where)

    def check(self, value: object, where: str) -> SettingValue:
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, Sequence):
            reject(where, self.accepts, value)
        for text in listed:
            if not isinstance(text, str) or not text:
                reject(where, self.accepts, text)
        return tuple(listed)

    def to_text(self, value: SettingValue) -> str:
        return " ".join(repr(text) for text in value) if isinstance(value, tuple) else repr(value)

    def to_toml(self, value: SettingValue) -> SettingValue | list[str]:
        return list(value) if isinstance(value, tuple) else value


def _range_text(low: float, high: float, *, above: bool = False) -> str:
    if high == math.inf:
        return f"above {low:g}" if above else f"at least {low:g}"
    return f"{'above' if above else 'from'} {low:g} to {high}"
