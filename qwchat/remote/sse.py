"""Server-sent events: the lines of a stream as the data of its events.

https://html.spec.whatwg.org/multipage/server-sent-events.html, without `id`, `retry` and reconnection.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_LINE_BYTES = 4 << 20
"""Longest event. An event with a token and its 20 alternatives takes less than 8 KiB."""

_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")  # After a CR at the end of a piece, a LF may follow.


class LongLineError(Exception):
    """An event that is longer than MAX_LINE_BYTES."""


class EventParser:
    """Parser of a stream that arrives in pieces of any size; a piece may end within a character or a line end."""

    def __init__(self) -> None:
        self._rest = b""
        self._searched = 0  # So many bytes of the rest have no line end.
        self._data: list[bytes] = []
        self._size = 0
        self._first = True

    def push(self, piece: bytes) -> Iterator[str]:
        """Yield the data of each event that `piece` completes. Invalid UTF-8 becomes U+FFFD. Raises LongLineError."""
        self._rest += piece
        start = 0
        while found := _LINE_END.search(self._rest, max(start, self._searched)):
            yield from self._add_line(self._rest[start : found.start()])
            start = found.end()
        self._rest = self._rest[start:]
        self._searched = max(0, len(self._rest) - 1)
        if len(self._rest) > MAX_LINE_BYTES:
            raise LongLineError

    def flush(self) -> Iterator[str]:
        """Yield the data of an event that the end of the stream completes."""
        for line in (self._rest.rstrip(b"\r"), b""):
            yield from self._add_line(line)
        self._rest = b""

    def _add_line(self, line: bytes) -> Iterator[str]:
        if self._first:
            line, self._first = line.removeprefix(b"\xef\xbb\xbf"), False
        if not line:
            data, self._data, self._size = self._data, [], 0
            if data:
                yield b"\n".join(data).decode("utf-8", "replace")
            return
        name, _, value = line.partition(b":")
        if name != b"data":  # A comment, or another field.
            return
        self._data.append(value.removeprefix(b" "))
        self._size += len(value) + 1
        if self._size > MAX_LINE_BYTES:
            raise LongLineError
