"""Decide which styling a stream gets, from the stream, the environment and the `color` setting."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, TextIO

from qwchat.markdown.styles import Styling

ColourChoice = Literal["auto", "always", "never"]


def styling_of(stream: TextIO, choice: ColourChoice = "auto", environment: Mapping[str, str] = os.environ) -> Styling:
    """Return the styling of `stream`.

    A stream that is not a terminal, or whose TERM is "dumb", gets plain text. NO_COLOR removes colours but keeps bold
    and dim.

    Args:
        stream: Standard output or standard error.
        choice: "always" and "never" override the stream and the environment.
        environment: Variables; TERM and NO_COLOR are read.
    """
    terminal = stream.isatty()
    if choice == "always":
        return Styling(terminal, emphasis=True, colour=True)
    capable = can_rewrite(stream, environment)
    if choice == "never" or not capable:
        return Styling(terminal, emphasis=False, colour=False)
    return Styling(terminal, emphasis=True, colour=not environment.get("NO_COLOR"))


def can_rewrite(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Return True if `stream` is a terminal that can redraw a line: TERM is set and is not "dumb"."""
    return stream.isatty() and environment.get("TERM", "") not in ("dumb", "")
