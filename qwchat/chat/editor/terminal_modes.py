"""Terminal modes outside the prompt: keys are not echoed, and wait for the next prompt."""

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
    """Ask the terminal to mark pastes, or to stop doing so.

    Without marks, every line of a paste would be sent as an input of its own.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and stream.isatty():
            with contextlib.suppress(OSError, ValueError):
                # A signal handler may call this during a write: bypass the stream's buffer.
                os.write(stream.fileno(), (_BRACKETED_PASTE_ON if enabled else _BRACKETED_PASTE_OFF).encode())
            return


@contextlib.contextmanager
def hold_keys(terminal: TextIO, *, by_line: bool, on_resume: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keep keys typed between prompts out of replies: they are not echoed, and wait for the next prompt.

    Ctrl-C does not discard waiting keys. Ctrl-Z and SIGTERM restore the terminal first. A process in the background
    changes nothing, since keys are not meant for it.

    Args:
        terminal: The terminal.
        by_line: Whether the next prompt reads lines edited by the terminal, so that keys wait in that form. Otherwise
            each key waits as it was pressed, including Enter and Ctrl-D, and pastes are marked.
        on_resume: Called when the process continues after Ctrl-Z.
    """
    if not terminal.isatty() or not _in_foreground(terminal):
        yield
        return
    descriptor = terminal.fileno()
    before = termios.tcgetattr(descriptor)
    modes = termios.tcgetattr(descriptor)
    modes[3] = (modes[3] & ~termios.ECHO) | termios.NOFLSH
    if not by_line:
        modes[0] &= ~termios.ICRNL
        modes[3] &= ~termios.ICANON

    def enter() -> None:
        termios.tcsetattr(descriptor, termios.TCSANOW, modes)
        if not by_line:
            set_bracketed_paste(enabled=True)

    def leave() -> None:
        if not by_line:
            set_bracketed_paste(enabled=False)
        with contextlib.suppress(termios.error):  # The terminal was closed.
            termios.tcsetattr(descriptor, termios.TCSANOW, before)

    def suspend(number: int, frame: FrameType | None) -> None:
        leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # The process stops here until the shell resumes it.
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
    """Return True if keys typed on `terminal` go to this process. In the background, changing modes would stop it."""
    try:
        return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:  # Not the controlling terminal.
        return True


@contextlib.contextmanager
def preserve_signal_handlers() -> Iterator[None]:
    """Restore the handlers of DEADLY signals after an event loop, which asyncio does not do."""
    before = {number: signal.getsignal(number) for number in TERMINATION_SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # None: a handler that Python did not install.
                    signal.signal(number, handler)


@contextlib.contextmanager
def lend_terminal() -> Iterator[None]:
    """Let another program use the terminal: Ctrl-Z then stops this process too, without changing any modes."""
    before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)


@contextlib.contextmanager
def canonical_mode(terminal: TextIO) -> Iterator[None]:
    """Let the terminal edit and echo lines, as it does for a shell without a line editor."""
    if not terminal.isatty():
        yield
        return
    descriptor = terminal.fileno()
    before = termios.tcgetattr(descriptor)
    modes = termios.tcgetattr(descriptor)
    modes[0] |= termios.ICRNL
    modes[3] |= termios.ICANON | termios.ECHO | termios.ISIG
    termios.tcsetattr(descriptor, termios.TCSANOW, modes)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
