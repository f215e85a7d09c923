"""Ask a yes-or-no question on the terminal."""

from __future__ import annotations

import sys

from qwchat.cli.streams import Streams


def confirm(streams: Streams, question: str) -> bool:
    """Ask on standard error and read a line of standard input. Return True for y or yes."""
    streams.screen.stream.write(f"{question} [y/N] ")
    streams.screen.stream.flush()
    return sys.stdin.readline().strip().casefold() in ("y", "yes")
