"""Messages that mention arguments, which each place that shows them spells in its own way.

Below the command line no message names a flag: it mentions an `Argument` by its name in Python. `str` of a message
spells arguments as Python does (`context=4096`), the command line as flags (`--ctx 4096`), the chat as its settings
(`/set ctx 4096`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Argument:
    """An argument that a message mentions.

    Attributes:
        name: of the parameter in Python.
        value: what it is; None mentions the argument alone, and `...` stands for any value.
    """

    name: str
    value: object = None

    def __str__(self) -> str:
        if self.value is None:
            return self.name
        return f"{self.name}={'…' if self.value is ... else repr(self.value)}"


@dataclass(frozen=True)
class SuggestedArgument(Argument):
    """An argument that a message tells a person to give; None as its value tells them to leave it out."""

    def __str__(self) -> str:
        return f"leave {self.name} out" if self.value is None else super().__str__()


class ArgumentMessage(str):
    """A text that mentions arguments, spelt as in Python.

    Args:
        parts: texts and arguments in their order; a text that is itself worded, and the message of an exception, keep
            their mentions.
    """

    parts: tuple[str | Argument, ...]

    def __new__(cls, *parts: str | Argument | BaseException) -> ArgumentMessage:
        flat = tuple(each for part in parts for each in message_parts(part))
        worded = super().__new__(cls, "".join(map(str, flat)))
        worded.parts = flat
        return worded


def message_parts(message: str | Argument | BaseException) -> tuple[str | Argument, ...]:
    """Return the texts and arguments of a message, or of the message of an exception."""
    if isinstance(message, BaseException):
        first = message.args[0] if message.args else ""
        return first.parts if isinstance(first, ArgumentMessage) else (str(message),)
    return message.parts if isinstance(message, ArgumentMessage) else (message,)


def spell_out(message: str | BaseException, spell: Callable[[Argument], str]) -> str:
    """Return a message with its arguments as `spell` spells them."""
    return "".join(part if isinstance(part, str) else spell(part) for part in message_parts(message))


def first_argument(message: str | BaseException) -> str | None:
    """Return the name of the first argument that a message mentions; None if it mentions no argument."""
    return next((part.name for part in message_parts(message) if isinstance(part, Argument)), None)
