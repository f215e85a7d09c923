"""A process that has the program imported and forks for each start that a test requests.

Imports take most of the start-up time. The process has one thread, so that it may fork. Other tests cover what a new
interpreter does before the program's first line; `needs_fresh_interpreter` tells which variables require one.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.clocks import PATIENCE_SECONDS
from tests.forks import finish, freeze

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("qwchat.chat", "qwchat.cli", "qwchat.markdown")
# Modules that the program imports late.
MODULES = (
    "concurrent.futures.thread",
    "httpx2",
    "platformdirs.unix",
    "prompt_toolkit.input.vt100",
    "prompt_toolkit.key_binding.bindings.search",
    "prompt_toolkit.patch_stdout",
    "pygments.filters",
    "pygments.lexers.python",
    "quant.conversion",
    "qwchat.api",
    "tests.chat.fakes",
    "tests.cli.fake_qwchat",
)
# The interpreter reads these at start.
INTERPRETER_VARIABLES = ("PYTHON", "LC_", "LANG", "LD_", "DYLD_")
SCRIPTED = "tests.cli.fake_qwchat:start"
REAL = "qwchat.cli.main:main"
_LENGTH = struct.Struct("!I")


class Program:
    """A program that a starter runs.

    Attributes:
        pid: process number; the process leads its own session.
        signalstatus: number of the signal that ended it.
    """

    def __init__(self, reply: socket.socket) -> None:
        self._reply = reply.makefile("r", encoding="ascii")
        reply.close()
        self._status: int | None = None
        self.pid = int(self._reply.readline())

    def isalive(self) -> bool:
        """Return True if the process has not ended."""
        if self._status is None and select.select([self._reply], [], [], 0)[0]:
            self.wait()
        return self._status is None

    def wait(self) -> int:
        """Wait for the end of the process. Return its exit code, or -N if signal N ended it."""
        if self._status is None:
            self._status = int(self._reply.readline())
            self._reply.close()
        return os.waitstatus_to_exitcode(self._status)

    def kill(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.isalive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    @property
    def exitstatus(self) -> int | None:
        """Exit code of a finished process; None if a signal ended it."""
        ended = self._status is not None and os.WIFEXITED(self._status)
        return os.WEXITSTATUS(self._status) if ended and self._status is not None else None


class Starter:
    """The forking process, seen from the tests. It ends with its parent process."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.starter", str(theirs.fileno())],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        atexit.register(self.close)

    def close(self) -> None:
        """End the process; programs that still run are not affected."""
        self._control.close()
        self._process.wait()

    def start(
        self,
        words: Sequence[str],
        variables: Mapping[str, str],
        folder: Path | str,
        streams: tuple[int, int, int],
        *,
        entry: str = SCRIPTED,
        terminal: bool = False,
    ) -> Program:
        """Start the program.

        Args:
            words: arguments.
            variables: the whole environment.
            folder: working folder.
            streams: descriptors of standard input, output and error; they stay open here.
            entry: `SCRIPTED` for the scripted model, or `REAL` for the engine.
            terminal: True if standard input is its controlling terminal.
        """
        request = {"words": [*words], "variables": {**variables}, "folder": str(folder), "entry": entry}
        body = json.dumps(request | {"terminal": terminal}).encode()
        reply, theirs = socket.socketpair()
        with theirs, self._asking:
            socket.send_fds(self._control, [_LENGTH.pack(len(body))], [*streams, theirs.fileno()])
            self._control.sendall(body)
        return Program(reply)


@functools.cache
def starter() -> Starter:
    """Return the starter of this process, which is started on first use."""
    return Starter()


def run_to_end(
    words: Sequence[str],
    variables: Mapping[str, str],
    given: bytes = b"",
    seconds: float = PATIENCE_SECONDS,
    *,
    entry: str = SCRIPTED,
) -> subprocess.CompletedProcess[bytes]:
    """Run the program to its end, without a terminal.

    Args:
        words: arguments.
        variables: the whole environment.
        given: content of standard input.
        seconds: time limit; then the program is killed and TimeoutExpired raised.
        entry: see `Starter.start`.
    """
    pipes = [os.pipe() for _ in range(3)]
    (stdin, writer), (reader, stdout), (errors, stderr) = pipes
    program = starter().start(words, variables, Path.cwd(), (stdin, stdout, stderr), entry=entry)
    for descriptor in (stdin, stdout, stderr):
        os.close(descriptor)
    got, left, end = {reader: b"", errors: b""}, given, time.monotonic() + seconds
    os.set_blocking(writer, False)
    reading, writing = [reader, errors], [writer]
    while reading:
        if not left and writing:
            os.close(writing.pop())
        ready, room, _ = select.select(reading, writing, [], max(0.0, end - time.monotonic()))
        if not ready and not room:
            program.kill(signal.SIGKILL)
            raise subprocess.TimeoutExpired([*words], seconds, got[reader], got[errors])
        if room:
            try:
                left = left[os.write(writer, left) :]
            except BrokenPipeError:
                left = b""
        for descriptor in ready:
            piece = os.read(descriptor, 1 << 16)
            got[descriptor] += piece
            if not piece:
                reading.remove(descriptor)
                os.close(descriptor)
    for descriptor in writing:
        os.close(descriptor)
    return subprocess.CompletedProcess([*words], program.wait(), got[reader], got[errors])


def needs_fresh_interpreter(variables: Mapping[str, str]) -> bool:
    """Return True if a variable takes effect only in a new interpreter."""
    return any(name.startswith(INTERPRETER_VARIABLES) for name in variables)


def serve(control: socket.socket) -> None:
    """Fork for each request until the tests end; report each program's number, and later its status."""
    import_everything()
    freeze()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    running: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([control, reader], [], [])
        if reader in ready:
            os.read(reader, 4096)
            _report_exits(running)
        if control in ready:
            length, descriptors, _, _ = socket.recv_fds(control, _LENGTH.size, 4)
            if not length:
                return
            request = json.loads(_read(control, *_LENGTH.unpack(length)))
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for opened in (control, *running.values()):
                    opened.close()
                os.close(reader)
                os.close(writer)
                _run_program(request, descriptors)
            for descriptor in descriptors[:3]:
                os.close(descriptor)
            running[pid] = socket.socket(fileno=descriptors[3])
            _send(running[pid], pid)


def import_everything() -> None:
    """Import what a chat imports at start, without the compiler."""
    names = [*PACKAGES, *MODULES]
    for name in PACKAGES:
        package = importlib.import_module(name)
        names += [module.name for module in pkgutil.walk_packages(package.__path__, f"{name}.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)


def _read(control: socket.socket, size: int) -> bytes:
    body = b""
    while len(body) < size and (part := control.recv(size - len(body))):
        body += part
    return body


def _report_exits(running: dict[int, socket.socket]) -> None:
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with running.pop(pid) as reply:
                _send(reply, status)


def _send(reply: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # The test gave up.
        reply.sendall(f"{number}\n".encode())


def _run_program(request: dict[str, Any], descriptors: Sequence[int]) -> NoReturn:
    """Run a program in a forked process."""
    code: Any = 1
    try:
        os.setsid()
        _redirect(descriptors, terminal=request["terminal"])
        os.environ.clear()
        os.environ.update(request["variables"])
        time.tzset()
        os.chdir(request["folder"])
        module, _, function = request["entry"].partition(":")
        sys.argv = [module, *request["words"]]
        try:
            getattr(importlib.import_module(module), function)()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:  # noqa: BLE001  # As the interpreter would.
            traceback.print_exc()
        finish()
    finally:
        os._exit(code & 0xFF)


def _redirect(descriptors: Sequence[int], *, terminal: bool) -> None:
    """Make the first three descriptors the standard streams, as the interpreter does at start."""
    if terminal:
        fcntl.ioctl(descriptors[0], termios.TIOCSCTTY, 0)
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)
    how = {"encoding": sys.stdout.encoding, "errors": sys.stdout.errors}
    sys.stdin = sys.__stdin__ = os.fdopen(0, newline="\n", closefd=False, **how)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", newline="\n", closefd=False, **how)
    how["errors"] = "backslashreplace"
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, newline="\n", closefd=False, **how)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
