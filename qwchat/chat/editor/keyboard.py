"""Keys pressed while a reply streams: some stop it, the others are typed ahead for the next prompt."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest

from prompt_toolkit.input import Input
from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys

from qwchat.chat.interrupts import Stop

ESCAPE_SECONDS = 0.05
"""An escape sequence arrives at once; Esc with nothing behind it for so long was pressed by itself."""

_NO_KEYS = (Keys.CPRResponse, Keys.Vt100MouseEvent, Keys.Ignore)

# Terminals that tell Shift-Enter and Alt-Enter from Enter write them in one of these two ways; prompt-toolkit takes the
# first for Enter and does not know the second.
_LINE_BREAKS = ("\x1b[27;2;13~", "\x1b[27;3;13~", "\x1b[13;2u", "\x1b[13;3u")


def teach_line_breaks() -> None:
    """Let prompt-toolkit read Shift-Enter and Alt-Enter, however a terminal writes them, as Ctrl-J."""
    for sequence in _LINE_BREAKS:
        ANSI_SEQUENCES[sequence] = Keys.ControlJ


class Keyboard:
    """The keys of ``source``, read without waiting.

    They go through the parser that the prompt uses, so that a paste or a sequence may begin during a reply and end at
    the prompt. However many there are, they are kept: the terminal's own buffer holds 4,096 bytes.
    """

    def __init__(self, source: Input) -> None:
        self._input = source
        self._read_at: float | None = None

    @contextmanager
    def watching(self) -> Iterator[Callable[[], Stop | None]]:
        """For the time of a reply; gives ``poll``."""
        self._read_at = None
        yield self.poll
        self._keep([key for key in self._flushed() if key.key != Keys.Escape])  # It came too late to stop anything.

    def poll(self) -> Stop | None:
        """The stop key among the keys pressed since the last call, if any; what stands behind it is kept."""
        if sys.platform == "win32":
            return None
        stop = self._typed_early()
        pressed = self._pressed()
        now = time.monotonic()
        if pressed:
            self._read_at = now
        elif self._read_at is not None and now - self._read_at >= ESCAPE_SECONDS:
            pressed = self._flushed()
        others = [key for key, after in zip_longest(pressed, pressed[1:]) if not _lone_escape(key, after)]
        if len(others) < len(pressed):
            stop, pressed = "escape", others
        if any(key.key == Keys.ControlC for key in pressed):
            stop = "interrupt"
            pressed = [key for key in pressed if key.key != Keys.ControlC]
        self._keep(pressed)
        return stop

    def _typed_early(self) -> Stop | None:
        """Ctrl-C behind the Enter that sent this question, read together with it by the prompt."""
        waiting = get_typeahead(self._input)
        early = bool(waiting) and waiting[0].key == Keys.ControlC
        store_typeahead(self._input, waiting[1:] if early else waiting)
        return "interrupt" if early else None

    def _pressed(self) -> list[KeyPress]:
        pressed: list[KeyPress] = []
        while not self._input.closed and _waiting(self._input.fileno()):
            pressed += self._input.read_keys()
            self._read_at = time.monotonic()  # Also where these bytes are but the beginning of a key.
        return pressed

    def _flushed(self) -> list[KeyPress]:
        """The keys that the parser held back since they might have been the beginning of longer sequences."""
        if self._read_at is None:
            return []
        self._read_at = None
        pressed: list[KeyPress] = []
        while found := self._input.flush_keys():  # Of several Esc one is let go at a time.
            pressed += found
        return pressed

    def _keep(self, pressed: list[KeyPress]) -> None:
        store_typeahead(self._input, [key for key in pressed if key.key not in _NO_KEYS])


def _lone_escape(key: KeyPress, after: KeyPress | None) -> bool:
    """Whether ``key`` is Esc by itself; with another key right behind it, it stands for Alt."""
    return key.key == Keys.Escape and (after is None or after.key == Keys.Escape)


def _waiting(descriptor: int) -> bool:
    """Whether a byte can be read from ``descriptor`` at once."""
    import select

    try:
        return bool(select.select([descriptor], [], [], 0)[0])
    except (OSError, ValueError):  # Closed meanwhile.
        return False
