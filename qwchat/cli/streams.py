"""Standard streams: what arrives through a pipe, what leaves, and where the person sits."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TextIO

from qwchat.chat.view.screen import Screen
from qwchat.chat.view.terminal import ColourChoice, can_rewrite, look_of
from qwchat.errors import UsageError

MAX_FILE_BYTES = 64 << 20  # No context holds more; a mistaken disk image is refused before it fills the memory.


class Streams:
    """The standard streams of the process, in UTF-8 wherever they are no terminal.

    Attributes:
        out: standard output: replies and the products of commands, nothing else.
        out_look: what ``out`` can show.
        screen: standard error: everything else.
    """

    def __init__(self, colour: ColourChoice = "auto", *, quiet: bool = False) -> None:
        self.out = _prepared(sys.stdout)
        errors = _prepared(sys.stderr)
        self.out_look = look_of(self.out, colour)
        self.screen = Screen(errors, look_of(errors, colour), quiet=quiet)
        self.rewritable = can_rewrite(errors) and not quiet

    def write(self, text: str) -> None:
        """Write the product of a command to standard output."""
        self.out.write(text)
        self.out.flush()


def stdin_is_terminal() -> bool:
    """Whether a person types into standard input."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_piped() -> str:
    """Everything that is piped in. Raises UsageError for bytes that are no UTF-8."""
    if sys.stdin is None:
        return ""
    return decoded(sys.stdin.buffer.read(), "standard input")


def read_file(path: Path) -> str:
    """The text of a file. Raises UsageError where it cannot be read, is too big or is no text."""
    try:
        if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{path} is bigger than {MAX_FILE_BYTES >> 20} MiB, more than any context holds")
        return decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def decoded(data: bytes, where: str) -> str:
    """``data`` as UTF-8 text without a byte order mark and without its last newlines; raises UsageError."""
    try:
        return data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{where} is no UTF-8 text (byte {error.start + 1:,} is 0x{data[error.start]:02x}): "
            "convert it first, for instance with iconv"
        ) from error


def controlling_terminal() -> TextIO | None:
    """The terminal that the process belongs to, where standard input is a pipe; None where there is none."""
    try:
        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return None
    return os.fdopen(descriptor, "r", encoding="utf-8", errors="replace")


def _prepared(stream: TextIO | None) -> TextIO:
    if stream is None:  # Closed by the caller (``>&-``).
        return io.StringIO()
    if isinstance(stream, io.TextIOWrapper):
        if stream.isatty():
            stream.reconfigure(errors="replace")
        else:
            stream.reconfigure(encoding="utf-8", errors="replace", newline="\n")
    return stream
