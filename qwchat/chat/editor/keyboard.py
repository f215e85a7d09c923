"""Keys pressed while a reply streams: some stop it, the others are typed ahead for the next prompt."""

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
"""An escape sequence arrives at once; Esc with nothing behind it for so long was pressed by itself."""

_NOT_TYPED = (Keys.CPRResponse, Keys.Vt100MouseEvent, Keys.Ignore)

# Terminals that tell Shift-Enter and Alt-Enter from Enter write them in one of these two ways; prompt-toolkit takes the
# first for Enter and does not know the second.
_LINE_BREAKS = ("\x1b[27;2;13~", "\x1b[27;3;13~", "\x1b[13;2u", "\x1b[13;3u")


def register_line_breaks() -> None:
    """Let prompt-toolkit read Shift-Enter and Alt-Enter, however a terminal writes them, as Ctrl-J."""
    toolkit.map_sequences(_LINE_BREAKS, Keys.ControlJ)


class Keyboard:
    """The keys of `source`, read while something else is done.

    They go through the parser that the prompt uses, so that a paste or a sequence may begin during a reply and end at
    the prompt. However many there are, they are kept: the terminal's own buffer holds 4,096 bytes. A thread reads them,
    since only when a key came tells Esc from the beginning of another one, and the engine may ask seconds apart.
    """

    def __init__(self, source: Input) -> None:
        self._input = source
        self._batches: deque[list[KeyPress]] = deque()

    @contextmanager
    def watch_keys(self) -> Iterator[Callable[[], StopKey | None]]:
        """For the time of a reply; gives `poll`."""
        read_end, write_end = os.pipe()
        listener = threading.Thread(target=self._listen, args=(read_end,), name="keyboard", daemon=True)
        listener.start()
        try:
            yield self.poll
        finally:
            os.close(write_end)
            listener.join()
            os.close(read_end)
            self._drain()  # A key that came too late to stop anything.

    def poll(self) -> StopKey | None:
        """The stop key among the keys pressed since the last call, if any; what stands behind it is kept."""
        return self._take_early_interrupt() or self._drain()

    def _drain(self) -> StopKey | None:
        """Keep the keys that have arrived, save those that stop a reply; the last of these."""
        stop: StopKey | None = None
        while self._batches:
            pressed = self._batches.popleft()
            others = [key for key, after in zip_longest(pressed, pressed[1:]) if not _is_lone_escape(key, after)]
            if len(others) < len(pressed):
                stop = "escape"
            if any(key.key == Keys.ControlC for key in others):
                stop = "interrupt"
            kept = [key for key in others if key.key not in (Keys.ControlC, *_NOT_TYPED)]
            toolkit.type_ahead(self._input, kept)
        return stop

    def _take_early_interrupt(self) -> StopKey | None:
        """Ctrl-C behind the Enter that sent this question, read together with it by the prompt."""
        waiting = toolkit.take_typed_ahead(self._input)
        early = bool(waiting) and waiting[0].key == Keys.ControlC
        toolkit.type_ahead(self._input, waiting[1:] if early else waiting)
        return "interrupt" if early else None

    def _listen(self, read_end: int) -> None:
        """Read keys until the other end of the pipe `read_end` is closed, or there is no terminal any more."""
        keys = self._input.fileno()
        partial = False  # The parser may hold the beginning of a key.
        while not self._input.closed:
            try:
                ready = select.select([keys, read_end], [], [], ESCAPE_SECONDS if partial else None)[0]
            except (OSError, ValueError):  # Closed meanwhile.
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
        """The keys that the parser held back since they might have been the beginning of longer sequences."""
        pressed: list[KeyPress] = []
        while found := self._input.flush_keys():  # Of several Esc one is let go at a time.
            pressed += found
        return pressed


def _is_lone_escape(key: KeyPress, after: KeyPress | None) -> bool:
    """Whether `key` is Esc by itself; with another key right behind it, it stands for Alt."""
    return key.key == Keys.Escape and (after is None or after.key == Keys.Escape)


def _is_closed(descriptor: int) -> bool:
    """Whether `descriptor` is of a terminal that was closed: it can be read at any time, and gives nothing."""
    try:
        termios.tcgetattr(descriptor)
    except termios.error as error:
        return bool(error.args[0] == errno.EIO)
    return False
