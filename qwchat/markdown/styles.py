"""What a stream can show: colour, emphasis, escape sequences made visible."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TextIO

from qwchat.characters import HARMFUL as HARMFUL
from qwchat.characters import Harmless as Harmless
from qwchat.characters import harmless as harmless
from qwchat.characters import harmless_name as harmless_name

# SGR codes.
BOLD, DIM, ITALIC, UNDERLINED, STRUCK, RED, CODE = "1", "2", "3", "4", "9", "31", "36"
EMPHASIS = frozenset({BOLD, DIM, ITALIC, UNDERLINED, STRUCK})

ColourChoice = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class Look:
    """How a stream is written to: ``terminal`` (a person watches), ``emphasis`` (bold, dim) and ``colour`` allowed."""

    terminal: bool
    emphasis: bool
    colour: bool

    def styled(self, text: str, code: str) -> str:
        """``text`` in the SGR style ``code`` (BOLD, DIM, RED …) where this look allows it."""
        allowed = self.emphasis if code in EMPHASIS else self.colour
        return f"\x1b[{code}m{text}\x1b[0m" if allowed and text else text


PLAIN = Look(terminal=False, emphasis=False, colour=False)


def look_of(stream: TextIO, choice: ColourChoice = "auto", environment: Mapping[str, str] = os.environ) -> Look:
    """The look of ``stream``: none where it is no terminal or TERM is dumb; NO_COLOR keeps bold and dim.

    ``choice`` "always" and "never" overrule the stream and the environment.
    """
    terminal = stream.isatty()
    if choice == "always":
        return Look(terminal, emphasis=True, colour=True)
    capable = terminal and environment.get("TERM", "") not in ("dumb", "")
    if choice == "never" or not capable:
        return Look(terminal, emphasis=False, colour=False)
    return Look(terminal, emphasis=True, colour=not environment.get("NO_COLOR"))


def can_rewrite(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a line on ``stream`` can be drawn over: a terminal that understands carriage return and erase."""
    return stream.isatty() and environment.get("TERM", "") not in ("dumb", "")
