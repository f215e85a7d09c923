"""Render templates of unknown origin in a worker process that can be killed.

A template may keep Python busy in C code, where exceptions, threads and Ctrl-C have no effect. `IsolatedTemplate`
therefore lets another process compile and render it: `qwchat.text.template.worker`, with limits on memory and processor
time. One worker serves all templates. It starts on first use (about 70 ms) and again after it was killed. It does not
inherit the environment, the working folder or the terminal.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qwchat.errors import TemplateError

CPU_BASE, CPU_PER_CHARACTER = 2.0, 4e-6  # seconds; the sandbox stops after a quarter of a second
WALL_BASE, WALL_PER_CHARACTER = 30.0, 1e-5  # seconds; the machine may be busy
REPLY_BASE, REPLY_PER_CHARACTER = 32 << 20, 256  # bytes; more than the budget of the sandbox allows
GRACE_SECONDS = 0.2  # from Ctrl-C until the worker is killed, if the Ctrl-C handler does not raise
POLL_SECONDS = 0.05
HEADER_SIZE = 8
REMEDY = "restore the template from the model's source"

_INHERITED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "TZ")
_PROGRAM = "import sys; sys.path += sys.argv[1:]; from qwchat.text.template.worker import main; main()"


class IsolatedTemplate:
    """Template that the worker process compiles and renders; the counterpart of `SandboxedTemplate`.

    Args:
        source: jinja2 source.
        where: name of the template for messages.

    Raises:
        TemplateError: the template has an error, uses a construct that is not allowed, or exceeds a limit.
    """

    def __init__(self, source: str, where: str) -> None:
        self._source, self._where = source, where
        self._ask(None, 0)

    def render(self, variables: Mapping[str, Any], input_length: int) -> str:
        """Return the rendered text.

        Args:
            variables: variables of the template, made of str, int, float, bool, None, list and dict.
            input_length: number of characters in `variables`; the limits depend on it.

        Raises:
            TemplateError: the template fails, refuses its input, or exceeds a limit.
            KeyboardInterrupt: Ctrl-C was pressed and the template did not end within GRACE_SECONDS.
        """
        return self._ask(dict(variables), input_length)

    def _ask(self, variables: dict[str, Any] | None, length: int) -> str:
        request = {"source": self._source, "where": self._where, "variables": variables, "length": length}
        try:
            reply = _WORKER.ask(request, length)
        except _WorkerError as error:
            reason = f"the chat template in {self._where} cannot be used: {error}: {REMEDY}"
            raise TemplateError(reason) from error
        if "error" in reply:
            raise TemplateError(" ".join(str(reply["error"]).split()))
        return str(reply["text"])


class _WorkerError(Exception):
    """The worker process did not reply. The message says why."""


class _WorkerProcess:
    """Worker process. It serves one request at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, request: dict[str, Any], length: int) -> dict[str, Any]:
        """Send one request and return the reply.

        Raises:
            _WorkerError: the worker exceeded a limit and was killed, or it could not be started.
        """
        cpu = CPU_BASE + CPU_PER_CHARACTER * length
        wall = WALL_BASE + WALL_PER_CHARACTER * length
        request = {**request, "cpu": cpu, "wall": wall}
        body = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")
        with self._lock, _ctrl_c_times() as interrupted_at:
            running = self._ensure_running()
            try:
                assert running.stdin is not None
                running.stdin.write(len(body).to_bytes(HEADER_SIZE, "big"))
                running.stdin.write(body)
                running.stdin.flush()
                return self._wait_for_reply(running, time.monotonic() + wall, length, interrupted_at)
            except BrokenPipeError:
                raise self._exit_error(running) from None
            except BaseException:
                self.kill()
                raise

    def _ensure_running(self) -> subprocess.Popen[bytes]:
        if self._running is not None and self._owner != os.getpid():
            self._running = None  # it belongs to the parent of a fork
        if self._running is None or self._running.poll() is not None:
            self.kill()
            self._running, self._owner = _start_worker(), os.getpid()
        return self._running

    def _wait_for_reply(
        self,
        running: subprocess.Popen[bytes],
        deadline: float,
        length: int,
        interrupted_at: Callable[[], float | None],
    ) -> dict[str, Any]:
        """Wait for the reply."""
        assert running.stdout is not None
        descriptor = running.stdout.fileno()
        received = bytearray()
        size: int | None = None
        while size is None or len(received) < HEADER_SIZE + size:
            if (pressed := interrupted_at()) is not None and time.monotonic() > pressed + GRACE_SECONDS:
                raise KeyboardInterrupt  # the handler only asked the reply to stop, which does not reach a template
            if time.monotonic() > deadline:
                self.kill()
                raise _WorkerError("it runs longer than any chat template needs")
            if not select.select([descriptor], [], [], POLL_SECONDS)[0]:
                continue
            block = os.read(descriptor, 1 << 16)
            if not block:
                raise self._exit_error(running)
            received += block
            if size is None and len(received) >= HEADER_SIZE:
                size = int.from_bytes(received[:HEADER_SIZE], "big")
                if size > REPLY_BASE + REPLY_PER_CHARACTER * length:
                    self.kill()
                    raise _WorkerError("it creates more text than any chat template needs")
        reply: dict[str, Any] = json.loads(received[HEADER_SIZE:].decode("utf-8", "surrogatepass"))
        return reply

    def _exit_error(self, running: subprocess.Popen[bytes]) -> _WorkerError:
        """Return the reason why the process ended without a reply."""
        with suppress(subprocess.TimeoutExpired):
            running.wait(1)
        code = running.returncode
        self.kill()
        if code is not None and -code in (signal.SIGPROF, signal.SIGALRM, signal.SIGXCPU):
            return _WorkerError("it runs longer than any chat template needs")
        return _WorkerError(f"its process ended with code {code}, perhaps because it ran out of memory")

    def kill(self) -> None:
        """Kill the process if it is running."""
        running, self._running = self._running, None
        if running is not None and self._owner == os.getpid():
            running.kill()
            running.wait()
            for stream in (running.stdin, running.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()


_WORKER = _WorkerProcess()
atexit.register(_WORKER.kill)


def _start_worker() -> subprocess.Popen[bytes]:
    """Start a worker that can import only jinja2 and qwchat, from the same paths as this process."""
    places = []
    for name in ("jinja2", "markupsafe", "qwchat"):
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise _WorkerError(f"the library {name} is missing")
        places.append(str(Path(found.origin).parent.parent))
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _PROGRAM, *dict.fromkeys(places)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={name: os.environ[name] for name in _INHERITED if name in os.environ},
            start_new_session=True,
        )
    except OSError as error:
        raise _WorkerError(f"its process cannot be started ({error})") from error


@contextmanager
def _ctrl_c_times() -> Iterator[Callable[[], float | None]]:
    """Record Ctrl-C in addition to the current handler, which may only ask the reply to stop.

    Yields:
        Function that returns the time of Ctrl-C on the clock of `time.monotonic`, or None. It always returns None
        outside the main thread, or if SIGINT has no Python handler.
    """
    pressed: float | None = None
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield lambda: None
        return
    handler = previous

    def note(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = time.monotonic()
        handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)
