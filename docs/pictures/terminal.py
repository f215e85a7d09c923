"""A program in a pseudo-terminal: keys are typed into it, and an emulator keeps what it shows, frame by frame."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import pexpect
import pyte

from docs.pictures.rows import Emulator, Row, rows_of

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PATIENCE_SECONDS = 600.0
QUIET_SECONDS = 0.7
KEY_SECONDS = 0.07  # between two keys of a person who types
MAX_PAUSE_SECONDS = 1.6  # of a recording; a slow machine pauses for longer
HELD_SECONDS, FREE_SECONDS = 0.045, 0.001
WHERE = b"\x1b[6n"  # asks a terminal where its cursor is
PROGRAM = "from qwchat.cli.main import main; main()"


class Frame(NamedTuple):
    """Rows of the screen, with the cursor, from `seconds` on."""

    seconds: float
    rows: tuple[Row, ...]


class Terminal:
    """A program and the screen it draws.

    Args:
        words: the program and its arguments; `qwchat` is the one of this checkout.
        home: folder of the models, settings and sessions, which is also the working folder.
        rows, columns: size of the window.

    Attributes:
        frames: what was on the screen, in order, without long pauses.
        marks: numbers of the frames that are compared with those of another run.
    """

    def __init__(self, words: Sequence[str], home: Path, *, rows: int, columns: int) -> None:
        self.screen = Emulator(columns, rows)
        self.frames: list[Frame] = []
        self.marks: list[int] = []
        self._stream = pyte.ByteStream(self.screen)
        self._changed = self._pressed = self._recorded = time.monotonic()
        program, *arguments = words
        self._process = pexpect.spawn(
            str(_script(home)) if program == "qwchat" else program,
            arguments,
            env=_variables(home),
            cwd=str(home),
            dimensions=(rows, columns),
            timeout=PATIENCE_SECONDS,
        )
        self._process.delaybeforesend = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.close(force=True)

    @property
    def text(self) -> str:
        """The text of the screen as it is now."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def type(self, text: str) -> None:
        """Type `text` as a person would, key by key."""
        for key in text:
            self.press(key)
            self.rest(KEY_SECONDS)

    def press(self, *keys: str) -> None:
        """Press keys at once."""
        self._pressed = time.monotonic()
        for key in keys:
            self._process.send(key)

    def rest(self, seconds: float) -> None:
        """Read for some time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._read(left)

    def wait(self, pattern: str) -> None:
        """Read until the regular expression matches a line of the screen."""
        self.wait_until(lambda: re.search(pattern, self.text, re.MULTILINE) is not None, pattern)

    def wait_until(self, reached: Callable[[], bool], what: str) -> None:
        """Read until `reached` says so. Raises TimeoutError with the screen."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not reached():
            if time.monotonic() > end or not self._read(0.05):
                raise TimeoutError(f"{what} did not appear; the screen shows\n{self.text}")

    def settle(self, prompt: str = r"^> ?$") -> None:
        """Read until the last key has been answered, a line matches `prompt`, and nothing more arrives."""

        def settled() -> bool:
            quiet = self._changed > self._pressed and time.monotonic() - self._changed > QUIET_SECONDS
            return quiet and re.search(prompt, self.text, re.MULTILINE) is not None

        self.wait_until(settled, f"a line {prompt!r} at the end of the output")

    def mark(self) -> None:
        """Compare what is on the screen now with another run; a still picture shows the last such moment."""
        self.marks.append(len(self.frames) - 1)

    def end(self) -> None:
        """Read to the end of the program."""
        end = time.monotonic() + PATIENCE_SECONDS
        while self._read(0.2):
            if time.monotonic() > end:
                raise TimeoutError(f"the program did not end; the screen shows\n{self.text}")

    @contextlib.contextmanager
    def slowed(self) -> Iterator[None]:
        """Hold the program most of the time, so that the embedded model writes at the pace of a large one."""
        ended = threading.Event()
        pid = _running(self._process.pid)

        def hold() -> None:
            while not ended.is_set():
                os.kill(pid, signal.SIGSTOP)
                time.sleep(HELD_SECONDS)
                os.kill(pid, signal.SIGCONT)
                time.sleep(FREE_SECONDS)

        thread = threading.Thread(target=hold)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _read(self, seconds: float) -> bool:
        try:
            data = self._process.read_nonblocking(65536, seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        for number, part in enumerate(data.split(WHERE)):
            if number:  # As a terminal does: it answers when it has drawn what came before.
                self._process.send(f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R")
            self._stream.feed(part)
        self._changed = time.monotonic()
        self._record()
        return True

    def _record(self) -> None:
        rows = rows_of(self.screen, cursor=True)
        if self.frames and rows == self.frames[-1].rows:
            return
        before = self.frames[-1].seconds if self.frames else 0.0
        pause = min(self._changed - self._recorded, MAX_PAUSE_SECONDS) if self.frames else 0.0
        self.frames.append(Frame(round(before + pause, 2), rows))
        self._recorded = self._changed


def _running(pid: int) -> int:
    """Return the last of the processes that a shell started one from another, or `pid` itself."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return _running(int(children[-1])) if children else pid


def _script(home: Path) -> Path:
    """Return a program `qwchat` that runs this checkout."""
    script = home / "bin" / "qwchat"
    if not script.exists():
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{PROGRAM}' \"$@\"\n")
        script.chmod(0o755)
    return script


def _variables(home: Path) -> dict[str, str]:
    """Return the environment of the program: nothing of the user's but the compiled kernels."""
    from qwchat.cpu.kernels.kernel_store import KERNELS

    return {
        "COLORTERM": "truecolor",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PATH": f"{_script(home).parent}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(REPOSITORY),
        "QWCHAT_CACHE": str(KERNELS.folder.parent),
        "QWCHAT_MODELS": str(home / "models"),
        "TERM": "xterm-256color",
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_DATA_HOME": str(home / ".local" / "share"),
        "XDG_STATE_HOME": str(home / ".local" / "state"),
    }
