"""What a stream can show: colour, emphasis, escape sequences made visible."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TextIO

# SGR codes.
BOLD, DIM, ITALIC, UNDERLINED, STRUCK, RED, CODE = "1", "2", "3", "4", "9", "31", "36"
EMPHASIS = frozenset({BOLD, DIM, ITALIC, UNDERLINED, STRUCK})

ColourChoice = Literal["auto", "always", "never"]

# What a terminal, or the eye, could be led astray by: controls (C0, DEL, C1), line and paragraph separators, controls
# of the direction of text (which can show a line in another order than it has), and what is no character at all.
HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u206f\ud800-\udfff\ufff9-\ufffb]")


def harmless(text: str) -> str:
    """``text`` with every control character but newline and tab made visible, so that a terminal obeys none of it.

    An escape sequence begins with ESC (shown as ␛) or with a C1 control (shown as <9B>); without it the rest is text.
    Overrides of the direction of writing are shown by number, too: <202E>.
    """
    return HARMFUL.sub(_picture, text)


def harmless_name(text: str) -> str:
    """``text`` on one line, for names of files and sessions: newlines and tabs are made visible as well."""
    return harmless(text).replace("\n", chr(0x240A)).replace("\t", chr(0x2409))


def _picture(match: re.Match[str]) -> str:
    """C0 controls have pictures in Unicode (U+2400 and on); the others are shown by number."""
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return chr(0x2421) if code == 0x7F else f"<{code:02X}>"


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
