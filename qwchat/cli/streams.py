"""Standard streams: what arrives through a pipe, what leaves, and where the person sits."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from typing import TextIO

from quant.units import binary_size
from qwchat.characters import sanitise
from qwchat.chat.attachments import MAX_FILE_BYTES, Attachment, LoadedFiles, decode_text, load_files
from qwchat.chat.statistics import StatsFormat
from qwchat.chat.view.colour import ColourChoice, can_rewrite, styling_of
from qwchat.chat.view.screen import Screen
from qwchat.cli.error_messages import as_flag
from qwchat.errors import UsageError


class Streams:
    """The standard streams of the process, in UTF-8 wherever they are no terminal.

    Attributes:
        out: standard output: replies and the products of commands, nothing else.
        out_look: what `out` can show.
        screen: standard error: everything else.
    """

    def __init__(
        self, colour: ColourChoice = "auto", *, quiet: bool = False, static: bool = False, figures: StatsFormat = "line"
    ) -> None:
        self.out = _configured(sys.stdout)
        errors = _configured(sys.stderr)
        self.out_styling = styling_of(self.out, colour)
        self.screen = Screen(errors, styling_of(errors, colour), quiet=quiet, figures=figures, spell=as_flag)
        self.rewritable = can_rewrite(errors) and not quiet and not static

    def write(self, text: str) -> None:
        """Write the product of a command to standard output: verbatim into a file or a pipe, without controls on a
        terminal, whatever names, settings and sessions may hold."""
        self.write_styled(sanitise(text) if self.out_styling.terminal else text)

    def write_styled(self, text: str) -> None:
        """Write what was made for the look of standard output, and harmless where that is a terminal."""
        self.out.write(text)
        self.out.flush()


def stdin_is_terminal() -> bool:
    """Whether a person types into standard input."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_stdin() -> str:
    """Everything that is piped in, without its last newlines. Raises UsageError for what is no text or has no end."""
    if sys.stdin is None:
        return ""
    data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(
            f"standard input is bigger than {binary_size(MAX_FILE_BYTES)}, more than any context holds: cut it"
        )
    return decode_text(data, "standard input").rstrip("\r\n")


def read_files(names: Iterable[str]) -> LoadedFiles:
    """The files that --file names, each once; `-` is what is piped in. Raises UsageError for one that is none."""
    found = [
        LoadedFiles((Attachment("standard input", read_stdin()),)) if name == "-" else load_files(name, pipes=True)
        for name in dict.fromkeys(names)
    ]
    attachments = dict.fromkeys(attachment for each in found for attachment in each.attachments)
    return LoadedFiles(tuple(attachments), tuple(notice for each in found for notice in each.notices))


def controlling_terminal() -> TextIO | None:
    """The terminal that the process belongs to, where standard input is a pipe; None where there is none."""
    try:
        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return None
    return os.fdopen(descriptor, "r", encoding="utf-8", errors="replace")


def _configured(stream: TextIO | None) -> TextIO:
    if stream is None:  # Standard error, closed by the caller (`2>&-`).
        return io.StringIO()
    if isinstance(stream, io.TextIOWrapper):
        if stream.isatty():
            stream.reconfigure(errors="replace")
        else:
            stream.reconfigure(encoding="utf-8", errors="replace", newline="\n")
    return stream
