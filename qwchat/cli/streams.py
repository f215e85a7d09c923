"""Standard streams of the process: piped input, output, and the user's terminal."""

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
    """The standard streams of the process, in UTF-8 unless they are a terminal.

    Attributes:
        out: standard output: replies and results of commands, nothing else.
        out_styling: the styles that `out` supports.
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
        """Write the result of a command to standard output.

        A file or a pipe gets it verbatim. On a terminal it is sanitised, because names, settings and sessions may
        contain control characters.
        """
        self.write_styled(sanitise(text) if self.out_styling.terminal else text)

    def write_styled(self, text: str) -> None:
        """Write text that is already styled and sanitised to standard output."""
        self.out.write(text)
        self.out.flush()


def stdin_is_terminal() -> bool:
    """Return True if standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_stdin() -> str:
    """Return all of standard input without trailing newlines. Raises UsageError if it is binary or too large."""
    if sys.stdin is None:
        return ""
    data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(
            f"standard input is larger than {binary_size(MAX_FILE_BYTES)}, the limit for a prompt: shorten it"
        )
    return decode_text(data, "standard input").rstrip("\r\n")


def read_files(names: Iterable[str]) -> LoadedFiles:
    """Return the files of --file, each once; `-` is standard input. Raises UsageError if one cannot be read."""
    found = [
        LoadedFiles((Attachment("standard input", read_stdin()),)) if name == "-" else load_files(name, pipes=True)
        for name in dict.fromkeys(names)
    ]
    attachments = dict.fromkeys(attachment for each in found for attachment in each.attachments)
    return LoadedFiles(tuple(attachments), tuple(notice for each in found for notice in each.notices))


def controlling_terminal() -> TextIO | None:
    """Return the terminal of the process if standard input is a pipe, or None."""
    try:
        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return None
    return os.fdopen(descriptor, "r", encoding="utf-8", errors="replace")


def _configured(stream: TextIO | None) -> TextIO:
    if stream is None:  # Closed by the caller (`2>&-`).
        return io.StringIO()
    if isinstance(stream, io.TextIOWrapper):
        if stream.isatty():
            stream.reconfigure(errors="replace")
        else:
            stream.reconfigure(encoding="utf-8", errors="replace", newline="\n")
    return stream
