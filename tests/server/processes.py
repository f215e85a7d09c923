"""`qwchat serve` as a process, and connections that send whatever a test wants."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tests.clocks import PATIENCE_SECONDS, wait_for
from tests.test_house import REPOSITORY

_READY = re.compile(r"serving (\S+) at (http://\S+)/v1\n")
_START = """
import functools, sys
from qwchat.server import server_limits
server_limits.ServerLimits = functools.partial(server_limits.ServerLimits, **{limits!r})
from qwchat.cli.main import main
main(sys.argv[1:])
"""


class ServerProcess:
    """A running `qwchat serve`.

    Attributes:
        url: its address, without a path.
        process: the process.
    """

    def __init__(
        self, folder: Path, words: tuple[str, ...], variables: Mapping[str, str], limits: Mapping[str, float]
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START.format(limits=limits), "serve", str(folder), "--port", "0", *words],
            cwd=REPOSITORY,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        wait_for(lambda: _READY.search(self.errors) or self.process.poll() is not None, "the server's first line")
        found = _READY.search(self.errors)
        assert found, self.errors
        self.url = found[2]

    @property
    def errors(self) -> str:
        """Standard error so far."""
        return "".join(self._lines)

    @property
    def port(self) -> int:
        """The port."""
        return int(self.url.rpartition(":")[2])

    def metric(self, name: str) -> float:
        """Return a number of the page of counters."""
        page = httpx2.get(f"{self.url}/metrics", timeout=PATIENCE_SECONDS).text
        return next(float(line.split()[1]) for line in page.splitlines() if line.startswith(f"qwchat_{name} "))

    def connect(self) -> socket.socket:
        """Return a new connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)

    def exchange(self, data: bytes) -> bytes:
        """Return the answer to some bytes, up to the end of the connection, which the server closes."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_all(connection)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Return the exit code."""
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join()
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr:
            for line in self.process.stderr:
                self._lines.append(line)


def read_all(connection: socket.socket) -> bytes:
    """Return everything up to the end of a connection."""
    received = b""
    try:
        while piece := connection.recv(1 << 16):
            received += piece
    except ConnectionResetError:
        pass
    return received


@contextmanager
def server_process(
    folder: Path, *words: str, variables: Mapping[str, str] | None = None, **limits: float
) -> Iterator[ServerProcess]:
    """Yield a running server; `limits` are fields of ServerLimits."""
    running = ServerProcess(folder, words, variables or {}, limits)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.wait()
