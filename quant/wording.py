"""Messages that mention arguments and are spelt differently in Python, on the command line and in the chat.

Libraries do not know flags: their messages mention an `Argument` by its Python name. `str(message)` spells it as Python
does (`context=4096`), the command line as a flag (`--ctx 4096`), the chat as a command (`/set ctx 4096`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Argument:
    """Argument that a message mentions.

    Attributes:
        name: name of the parameter in Python.
        value: value to show. None shows the name alone; `...` stands for any value.
    """

    name: str
    value: object = None

    def __str__(self) -> str:
        if self.value is None:
            return self.name
        return f"{self.name}={'…' if self.value is ... else repr(self.value)}"


@dataclass(frozen=True)
class SuggestedArgument(Argument):
    """Argument that a message tells the user to give. The value None tells them to leave it out."""

    def __str__(self) -> str:
        return f"leave {self.name} out" if self.value is None else super().__str__()


class ArgumentMessage(str):
    """Message that mentions arguments; as a `str` it spells them as Python does.

    Args:
        parts: texts and arguments in order. An `ArgumentMessage`, and an exception whose message is one, keep the
            arguments that they mention.
    """

    parts: tuple[str | Argument, ...]

    def __new__(cls, *parts: str | Argument | BaseException) -> ArgumentMessage:
        """Join texts and arguments into one message."""
        flat = tuple(each for part in parts for each in message_parts(part))
        message = super().__new__(cls, "".join(map(str, flat)))
        message.parts = flat
        return message


def message_parts(message: str | Argument | BaseException) -> tuple[str | Argument, ...]:
    """Return the texts and arguments of a message or exception."""
    if isinstance(message, BaseException):
        first = message.args[0] if message.args else ""
        return first.parts if isinstance(first, ArgumentMessage) else (str(message),)
    return message.parts if isinstance(message, ArgumentMessage) else (message,)


def spell_out(message: str | BaseException, spell: Callable[[Argument], str]) -> str:
    """Return the text of a message or exception, with `spell` applied to each argument."""
    return "".join(part if isinstance(part, str) else spell(part) for part in message_parts(message))


def first_argument(message: str | BaseException) -> str | None:
    """Return the name of the first argument that a message mentions, or None."""
    return next((part.name for part in message_parts(message) if isinstance(part, Argument)), None)
