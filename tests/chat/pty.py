"""The chat in a pseudo-terminal: sends keys and reads the screen that the user sees."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pexpect
import pexpect.fdpexpect
import pyte

from tests.cli.runs import FAKE, environment
from tests.clocks import PATIENCE_SECONDS
from tests.starter import SCRIPTED, needs_fresh_interpreter, starter

ROWS, COLUMNS = 40, 100
WHERE = b"\x1b[6n"  # Asks the terminal for the position of its cursor.
TOOLBARS = ("Enter sends", '""" and Enter send')


def without_styles(data: bytes) -> bytes:
    """Return what a program wrote without its colours, bold and faint letters."""
    return re.sub(rb"\x1b\[[0-9;]*m", b"", data)


class Forked(pexpect.fdpexpect.fdspawn):
    """A chat in a pseudo-terminal, started by the forking process, with the interface of `pexpect.spawn` used here."""

    def __init__(
        self, words: list[str], variables: dict[str, str], folder: Path, size: tuple[int, int], entry: str
    ) -> None:
        ours, theirs = pty.openpty()
        super().__init__(ours, timeout=PATIENCE_SECONDS)
        self.setwinsize(*size)
        self.program = starter().start(words, variables, folder, (theirs, theirs, theirs), entry=entry, terminal=True)
        os.close(theirs)

    def isalive(self) -> bool:
        return self.program.isalive()

    def kill(self, sig: int) -> None:
        self.program.kill(sig)

    def wait(self) -> int:
        return self.program.wait()

    @property
    def exitstatus(self) -> int | None:
        return self.program.exitstatus

    @exitstatus.setter
    def exitstatus(self, code: int | None) -> None:
        """Take what pexpect sets at its start."""

    def setwinsize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.child_fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def getecho(self) -> bool:
        return bool(termios.tcgetattr(self.child_fd)[3] & termios.ECHO)


class Terminal:
    """A process in a pseudo-terminal, the screen that it draws, and everything that scrolled away.

    The process is forked from one that has imported the chat, unless another `command` is given or the variables matter
    at the start of the interpreter.
    """

    def __init__(
        self,
        *arguments: str,
        models: Path,
        variables: dict[str, str] | None = None,
        command: list[str] | None = None,
        entry: str = SCRIPTED,
        folder: Path | None = None,
        rows: int = ROWS,
        columns: int = COLUMNS,
        **script: Any,
    ) -> None:
        self._screen = pyte.HistoryScreen(columns, rows, history=20_000, ratio=0.5)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        everything = environment(models, **script) | (variables or {})
        place = folder or Path.cwd()
        if command or needs_fresh_interpreter(variables or {}):
            program = command or [sys.executable, str(FAKE), *arguments]
            self.process = pexpect.spawn(
                program[0],
                program[1:],
                env=everything,
                cwd=str(place),
                dimensions=(rows, columns),
                timeout=PATIENCE_SECONDS,
            )
        else:
            self.process = Forked([*arguments], everything, place, (rows, columns), entry)
        self.process.delaybeforesend = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.isalive():
            self.process.kill(signal.SIGKILL)
            self.process.wait()
        self.process.close()

    @property
    def text(self) -> str:
        """The text on the screen and above it, without trailing blanks and without the toolbar below the prompt."""
        lines = self._lines()
        return "\n".join(lines[:-1] if self.toolbar else lines).rstrip()

    @property
    def columns(self) -> int:
        """Width of the window in columns."""
        return int(self._screen.columns)

    @property
    def bottom(self) -> str:
        """The rows on the screen alone, which are read quickly however much has scrolled away."""
        return "\n".join(self._screen.display)

    @property
    def toolbar(self) -> str:
        """The line below the prompt; empty if there is no toolbar."""
        last = self._lines()[-1]
        return last if last.startswith(TOOLBARS) else ""

    def _lines(self) -> list[str]:
        """Return the rows of the screen alone, which is fast however much has scrolled away."""
        screen = self._screen
        rows = [*screen.history.top, *(screen.buffer[row] for row in range(screen.lines))]
        lines = ["".join(row[column].data for column in range(screen.columns)).rstrip() for row in rows]
        return "\n".join(lines).rstrip().split("\n")

    def type(self, keys: str) -> None:
        r"""Press keys: `\r` is Enter, `\n` is Ctrl-J, `\x03` is Ctrl-C, `\x04` is Ctrl-D."""
        self.process.send(keys)

    def resize(self, rows: int, columns: int) -> None:
        """Resize the window, as dragging its corner does."""
        self._screen.resize(rows, columns)
        self.process.setwinsize(rows, columns)

    def hang_up(self) -> int:
        """Close the terminal, as closing its window does. Return the exit code of the process once it has ended."""
        self.process.close()
        return self.process.wait()

    def wait(self, *texts: str) -> str:
        """Read until every one of `texts` is on the screen. Return the screen."""
        return self.wait_until(lambda: all(text in self.text for text in texts), f"{texts} to appear")

    def wait_until(self, reached: Callable[[], bool], what: str) -> str:
        """Read until `reached` returns True. Return the screen, or fail with it after a while."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not reached():
            if time.monotonic() > end:
                raise AssertionError(f"did not see {what}; the screen shows:\n{self.text}")
            self._read(0.05)
        return self.text

    def prompt(self) -> str:
        """Read until the last line is an empty prompt. Return the screen."""
        return self.wait_until(lambda: self.text.splitlines()[-1:] == [">"], "the prompt")

    def end(self) -> int | None:
        """Read until the process ends. Return its exit code."""
        end = time.monotonic() + PATIENCE_SECONDS
        while self._read(0.2):
            if time.monotonic() > end:
                raise AssertionError(f"the process did not end; the screen shows:\n{self.text}")
        self.process.wait()
        return self.process.exitstatus

    def _read(self, seconds: float) -> bool:
        try:
            data = self.process.read_nonblocking(65536, seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        for number, part in enumerate(data.split(WHERE)):
            if number:  # Like a terminal, answer once everything before the question is drawn.
                self.process.send(f"\x1b[{self._screen.cursor.y + 1};{self._screen.cursor.x + 1}R")
            self._stream.feed(part)
        return True
