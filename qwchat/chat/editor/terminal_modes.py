"""The terminal while nobody asks for input: keys are not echoed, and wait."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TextIO

from qwchat.chat.interrupts import TERMINATION_SIGNALS

_BRACKETED_PASTE_ON, _BRACKETED_PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"


def set_bracketed_paste(*, enabled: bool) -> None:
    """Ask the terminal to put brackets around what is pasted, or no longer.

    Without them every line of a paste would be an input of its own.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and stream.isatty():
            with contextlib.suppress(OSError, ValueError):
                # Not through the stream's buffer: a signal may have interrupted a write to it, and handlers come here.
                os.write(stream.fileno(), (_BRACKETED_PASTE_ON if enabled else _BRACKETED_PASTE_OFF).encode())
            return


@contextlib.contextmanager
def hold_keys(terminal: TextIO, *, by_line: bool, on_resume: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keep keys typed between prompts out of replies: they are not echoed, and wait for the next prompt.

    `by_line`: the next prompt reads lines that the terminal edits, so keys wait in that form; otherwise each waits as
    it was pressed, Enter and Ctrl-D included, and pastes are marked. Ctrl-C takes none of them away. Ctrl-Z stops the
    process with the terminal as it was found, and `on_resume` is called when it goes on; a polite kill, too, leaves the
    terminal so. A process in the background changes nothing: keys are not for it.
    """
    if not terminal.isatty() or not _in_foreground(terminal):
        yield
        return
    descriptor = terminal.fileno()
    before = termios.tcgetattr(descriptor)
    held = termios.tcgetattr(descriptor)
    held[3] = (held[3] & ~termios.ECHO) | termios.NOFLSH
    if not by_line:
        held[0] &= ~termios.ICRNL
        held[3] &= ~termios.ICANON

    def enter() -> None:
        termios.tcsetattr(descriptor, termios.TCSANOW, held)
        if not by_line:
            set_bracketed_paste(enabled=True)

    def leave() -> None:
        if not by_line:
            set_bracketed_paste(enabled=False)
        with contextlib.suppress(termios.error):  # The terminal is gone.
            termios.tcsetattr(descriptor, termios.TCSANOW, before)

    def suspend(number: int, frame: FrameType | None) -> None:
        leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # Here time passes, until the shell wakes the process.
        signal.signal(signal.SIGTSTP, suspend)
        enter()
        on_resume()

    def die(number: int, frame: FrameType | None) -> None:
        try:
            leave()
        finally:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    with contextlib.ExitStack() as stack:
        in_main_thread = threading.current_thread() is threading.main_thread()
        for deadly in TERMINATION_SIGNALS:
            if in_main_thread and signal.getsignal(deadly) is signal.SIG_DFL:
                stack.callback(signal.signal, deadly, signal.signal(deadly, die))
        if in_main_thread and signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
            stack.callback(signal.signal, signal.SIGTSTP, signal.signal(signal.SIGTSTP, suspend))
        stack.callback(leave)
        enter()
        yield


def _in_foreground(terminal: TextIO) -> bool:
    """Whether keys typed on `terminal` are for this process; changing its settings would stop it otherwise."""
    try:
        return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:  # Not the terminal that the process belongs to.
        return True


@contextlib.contextmanager
def preserve_signal_handlers() -> Iterator[None]:
    """For the time of an event loop that handles DEADLY signals: asyncio forgets who handled them before."""
    before = {number: signal.getsignal(number) for number in TERMINATION_SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # None: somebody's who is not Python's.
                    signal.signal(number, handler)


@contextlib.contextmanager
def lend_terminal() -> Iterator[None]:
    """While another program has the terminal: Ctrl-Z stops this process too, without a change to the terminal."""
    before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)


@contextlib.contextmanager
def canonical_mode(terminal: TextIO) -> Iterator[None]:
    """Let the terminal edit lines and echo them, as it does for a shell without a line editor."""
    if not terminal.isatty():
        yield
        return
    descriptor = terminal.fileno()
    before = termios.tcgetattr(descriptor)
    lines = termios.tcgetattr(descriptor)
    lines[0] |= termios.ICRNL
    lines[3] |= termios.ICANON | termios.ECHO | termios.ISIG
    termios.tcsetattr(descriptor, termios.TCSANOW, lines)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
