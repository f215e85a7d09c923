"""Kinds of values: what is taken, how it is read from a person's text and from a file, how it is shown.

Every kind reads text (a flag, a variable, `/set`) with `parse` and a value of a TOML file with `check`; both
raise UsageError that begins with `where`, the name of the flag, variable or key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NoReturn, Protocol

from quant.values import shown
from qwchat.errors import UsageError
from qwchat.limits import MAX_WHOLE
from qwchat.settings import toml

Value = float | int | bool | str | tuple[str, ...] | None
"""What a knob can be set to."""

_SWITCHED = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}


class Kind(Protocol):
    """What every kind of value has.

    Attributes:
        metavar: what stands for a value in the help.
        limits: what is taken, in words.
        span: the range of a number in words, empty for other kinds.
        choices: the values there are, where they can be listed.
    """

    @property
    def metavar(self) -> str: ...
    @property
    def limits(self) -> str: ...
    @property
    def span(self) -> str: ...
    @property
    def choices(self) -> tuple[str, ...]: ...

    def parse(self, text: str, where: str) -> Value:
        """The value that `text` means."""

    def check(self, value: object, where: str) -> Value:
        """The value that a TOML file states."""

    def shown(self, value: Value) -> str:
        """`value` as a person would type it."""

    def stored(self, value: Value) -> Value | list[str]:
        """`value` as a TOML file states it."""


def refuse(where: str, wanted: str, value: object) -> NoReturn:
    """Raise the UsageError that says what `where` must be."""
    number = isinstance(value, float) and math.isfinite(value)
    raise UsageError(f"{where} must be {wanted}, not {f'{value:g}' if number else shown(value)}")


@dataclass(frozen=True)
class Number:
    """A number from `low` to `high`; `above`: not `low` itself."""

    low: float
    high: float = math.inf
    above: bool = False
    metavar: str = "X"
    choices: ClassVar[tuple[str, ...]] = ()

    @property
    def limits(self) -> str:
        return f"a number {self.span}".replace("at least", "of at least")

    @property
    def span(self) -> str:
        return _range(self.low, self.high, above=self.above)

    def parse(self, text: str, where: str) -> Value:
        try:
            number = float(text)
        except ValueError:
            refuse(where, self.limits, text)
        return self._within(number, where)

    def check(self, value: object, where: str) -> Value:
        if isinstance(value, bool) or not isinstance(value, int | float):
            refuse(where, self.limits, value)
        try:
            return self._within(float(value), where)
        except OverflowError:
            refuse(where, self.span, value)

    def _within(self, number: float, where: str) -> float:
        low_enough = self.low < number if self.above else self.low <= number
        if not (math.isfinite(number) and low_enough and number <= self.high):
            refuse(where, self.span, number)
        return number

    def shown(self, value: Value) -> str:
        return f"{value:g}"

    def stored(self, value: Value) -> Value:
        return value


@dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`; None: to what every part of the program can count with."""

    low: int
    high: int | None = None
    metavar: str = "N"
    choices: ClassVar[tuple[str, ...]] = ()

    @property
    def limits(self) -> str:
        return f"a whole number {self.span}".replace("at least", "of at least")

    @property
    def span(self) -> str:
        return _range(self.low, math.inf if self.high is None else self.high)

    def parse(self, text: str, where: str) -> Value:
        try:
            number = int(text)
        except ValueError:
            refuse(where, self.limits, text)
        return self._within(number, where)

    def check(self, value: object, where: str) -> Value:
        if isinstance(value, bool) or not isinstance(value, int):
            refuse(where, self.limits, value)
        return self._within(value, where)

    def _within(self, number: int, where: str) -> int:
        if number < self.low or (self.high is not None and number > self.high):
            refuse(where, self.span, number)
        if self.high is None and number > MAX_WHOLE:
            refuse(where, f"at most {MAX_WHOLE}", number)
        return number

    def shown(self, value: Value) -> str:
        return str(value)

    def stored(self, value: Value) -> Value:
        return value


@dataclass(frozen=True)
class Switch:
    """On or off."""

    limits: ClassVar[str] = "on or off"
    span: ClassVar[str] = ""
    metavar: ClassVar[str] = "on|off"
    choices: ClassVar[tuple[str, ...]] = ("on", "off")

    def parse(self, text: str, where: str) -> Value:
        if text.lower() not in _SWITCHED:
            refuse(where, self.limits, text)
        return _SWITCHED[text.lower()]

    def check(self, value: object, where: str) -> Value:
        return value if isinstance(value, bool) else self.parse(str(value), where)

    def shown(self, value: Value) -> str:
        return "on" if value else "off"

    def stored(self, value: Value) -> Value:
        return value


@dataclass(frozen=True)
class Choice:
    """One of `choices`."""

    choices: tuple[str, ...]
    span: ClassVar[str] = ""

    @property
    def metavar(self) -> str:
        return "|".join(self.choices)

    @property
    def limits(self) -> str:
        *others, last = self.choices
        return f"{', '.join(others)} or {last}"

    def parse(self, text: str, where: str) -> Value:
        if text not in self.choices:
            refuse(where, self.limits, text)
        return text

    def check(self, value: object, where: str) -> Value:
        if not isinstance(value, str):
            refuse(where, self.limits, value)
        return self.parse(value, where)

    def shown(self, value: Value) -> str:
        return str(value)

    def stored(self, value: Value) -> Value:
        return value


@dataclass(frozen=True)
class Text:
    """Any text. `suggested`: values worth offering, though others are taken as well."""

    metavar: str = "TEXT"
    limits: str = "a text"
    suggested: tuple[str, ...] = ()
    span: ClassVar[str] = ""

    @property
    def choices(self) -> tuple[str, ...]:
        return self.suggested

    def parse(self, text: str, where: str) -> Value:
        return text

    def check(self, value: object, where: str) -> Value:
        if not isinstance(value, str):
            refuse(where, self.limits, value)
        return value

    def shown(self, value: Value) -> str:
        return str(value)

    def stored(self, value: Value) -> Value:
        return value


@dataclass(frozen=True)
class Texts:
    """Any number of texts, none of them empty: one as it is, several as a TOML list (`["a", "b"]`)."""

    metavar: str = "TEXT"
    span: ClassVar[str] = ""
    limits: ClassVar[str] = 'a text that is not empty, or a list of such texts as in ["a", "b"]'
    choices: ClassVar[tuple[str, ...]] = ()

    def parse(self, text: str, where: str) -> Value:
        if text.startswith("[") and text.endswith("]"):
            try:
                listed = toml.parse(f"value = {text}", where)["value"]
            except UsageError:  # Brackets around anything else are a text of their own.
                return (text,)
            return self.check(listed, where)
        return self.check(text, where)

    def check(self, value: object, where: str) -> Value:
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, Sequence):
            refuse(where, self.limits, value)
        for text in listed:
            if not isinstance(text, str) or not text:
                refuse(where, self.limits, text)
        return tuple(listed)

    def shown(self, value: Value) -> str:
        return " ".join(repr(text) for text in value) if isinstance(value, tuple) else repr(value)

    def stored(self, value: Value) -> Value | list[str]:
        return list(value) if isinstance(value, tuple) else value


def _range(low: float, high: float, *, above: bool = False) -> str:
    if high == math.inf:
        return f"above {low:g}" if above else f"at least {low:g}"
    return f"{'above' if above else 'from'} {low:g} to {high}"
