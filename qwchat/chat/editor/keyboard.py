"""Keys pressed while a reply streams: stop keys stop it, Ctrl-T shows its thought, others wait for the next prompt."""

from __future__ import annotations

import errno
import os
import select
import termios
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest

from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys

from qwchat.chat.editor import toolkit
from qwchat.chat.interrupts import StopKey

ESCAPE_SECONDS = 0.05
"""Escape sequences arrive as a whole, so Esc with nothing after it for this long was pressed alone."""

_NOT_TYPED = (Keys.CPRResponse, Keys.Vt100MouseEvent, Keys.Ignore)

# Terminals that distinguish Shift-Enter and Alt-Enter from Enter use one of these two encodings. prompt-toolkit reads
# the first as Enter and does not know the second.
_LINE_BREAKS = ("\x1b[27;2;13~", "\x1b[27;3;13~", "\x1b[13;2u", "\x1b[13;3u")


def register_line_breaks() -> None:
    """Make prompt-toolkit read Shift-Enter and Alt-Enter, in every encoding, as Ctrl-J."""
    toolkit.map_sequences(_LINE_BREAKS, Keys.ControlJ)


class Keyboard:
    """Reader of the keys of `source` while a reply streams.

    Keys pass through the parser of the prompt, so that a paste or an escape sequence may begin during a reply and end
    at the prompt. All keys are kept, whereas the terminal buffers only 4,096 bytes. A thread reads them, because only
    the arrival time tells Esc from the beginning of an escape sequence, and the engine may poll seconds apart.

    Args:
        source: The keys.
        toggle_thought: Function that Ctrl-T calls; False if there is no thought, so that the key is kept.
    """

    def __init__(self, source: Input, toggle_thought: Callable[[], bool] = lambda: False) -> None:
        self._input, self._toggle_thought = source, toggle_thought
        self._batches: deque[list[KeyPress]] = deque()

    @contextmanager
    def watch_keys(self) -> Iterator[Callable[[], StopKey | None]]:
        """Read keys while the context is open. Yield the function `poll`."""
        read_end, write_end = os.pipe()
        listener = threading.Thread(target=self._listen, args=(read_end,), name="keyboard", daemon=True)
        listener.start()
        try:
            yield self.poll
        finally:
            os.close(write_end)
            listener.join()
            os.close(read_end)
            self._drain()  # Keys that arrived too late to stop the reply.

    def poll(self) -> StopKey | None:
        """Return the stop key pressed since the last call, or None. Keys after it are kept."""
        return self._take_early_interrupt() or self._drain()

    def _drain(self) -> StopKey | None:
        """Keep the keys that have arrived, except stop keys, and return the last stop key."""
        stop: StopKey | None = None
        while self._batches:
            pressed = self._batches.popleft()
            others = [key for key, after in zip_longest(pressed, pressed[1:]) if not _is_lone_escape(key, after)]
            if len(others) < len(pressed):
                stop = "escape"
            if any(key.key == Keys.ControlC for key in others):
                stop = "interrupt"
            others = [key for key in others if key.key != Keys.ControlT or not self._toggle_thought()]
            kept = [key for key in others if key.key not in (Keys.ControlC, *_NOT_TYPED)]
            toolkit.type_ahead(self._input, kept)
        return stop

    def _take_early_interrupt(self) -> StopKey | None:
        """Return Ctrl-C if the prompt read it together with the Enter that sent this message."""
        waiting = toolkit.take_typed_ahead(self._input)
        early = bool(waiting) and waiting[0].key == Keys.ControlC
        toolkit.type_ahead(self._input, waiting[1:] if early else waiting)
        return "interrupt" if early else None

    def _listen(self, read_end: int) -> None:
        """Read keys until the other end of the pipe `read_end` is closed or the terminal is gone."""
        keys = self._input.fileno()
        partial = False  # The parser may hold part of a key.
        while not self._input.closed:
            try:
                ready = select.select([keys, read_end], [], [], ESCAPE_SECONDS if partial else None)[0]
            except (OSError, ValueError):  # The terminal was closed.
                break
            if read_end in ready:
                break
            if keys in ready:
                pressed, partial = self._input.read_keys(), True
                if not pressed and _is_closed(keys):
                    break
            else:
                pressed, partial = self._flush(), False
            self._batches.append(pressed)
        if partial:
            self._batches.append(self._flush())

    def _flush(self) -> list[KeyPress]:
        """Return the keys that the parser held back as possible beginnings of longer sequences."""
        pressed: list[KeyPress] = []
        while found := self._input.flush_keys():  # Each call releases one of several Esc.
            pressed += found
        return pressed


def _is_lone_escape(key: KeyPress, after: KeyPress | None) -> bool:
    """Return True if `key` is Esc alone. With another key directly after it, Esc means Alt."""
    return key.key == Keys.Escape and (after is None or after.key == Keys.Escape)


def _is_closed(descriptor: int) -> bool:
    """Return True if the terminal of `descriptor` was closed: reads return at once with no data."""
    try:
        termios.tcgetattr(descriptor)
    except termios.error as error:
        return bool(error.args[0] == errno.EIO)
    return False
