"""What a stream can show, from the stream, the environment and the choice of colour."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, TextIO

from qwchat.markdown.styles import Styling

ColourChoice = Literal["auto", "always", "never"]


def styling_of(stream: TextIO, choice: ColourChoice = "auto", environment: Mapping[str, str] = os.environ) -> Styling:
    """Return the look of `stream`: plain if it is not a terminal or TERM is dumb; NO_COLOR keeps bold and dim.

    Args:
        stream: standard output or standard error.
        choice: "always" and "never" overrule the stream and the environment.
        environment: TERM and NO_COLOR are read.
    """
    terminal = stream.isatty()
    if choice == "always":
        return Styling(terminal, emphasis=True, colour=True)
    capable = can_rewrite(stream, environment)
    if choice == "never" or not capable:
        return Styling(terminal, emphasis=False, colour=False)
    return Styling(terminal, emphasis=True, colour=not environment.get("NO_COLOR"))


def can_rewrite(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether `stream` is a terminal that can draw over a line: TERM is set and not dumb."""
    return stream.isatty() and environment.get("TERM", "") not in ("dumb", "")
