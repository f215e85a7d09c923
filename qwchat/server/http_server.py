"""The HTTP server: a socket, uvicorn in a thread of its own, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from qwchat.server.model_worker import ModelWorker
from qwchat.server.protocol import protocol_factory
from qwchat.server.server_limits import ServerLimits

_BACKLOG = 128
_SEND_BUFFER_BYTES = 128 << 10
"""What the system holds of a reply for a slow reader: with megabytes, its limits would begin much later."""


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address but does not listen yet. Port 0 picks a free one. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)  # Connections inherit it.
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def is_loopback(bound: socket.socket) -> bool:
    """Return whether a socket can be reached from this machine only."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def url_of(bound: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class HttpServer:
    """uvicorn in a thread of its own, while the calling thread runs the model.

    Args:
        app: the application.
        bound: the socket.
        worker: the model's queue.
        limits: limits of connections.
        log: called with a line per problem of a connection.
    """

    def __init__(
        self, app: ASGIApp, bound: socket.socket, worker: ModelWorker, limits: ServerLimits, log: Callable[[str], None]
    ) -> None:
        self._bound, self._worker, self._limits, self._log = bound, worker, limits, log
        config = uvicorn.Config(
            app,
            http=protocol_factory(limits),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            h11_max_incomplete_event_size=limits.head_bytes,
            timeout_keep_alive=limits.keep_alive_seconds,
            timeout_graceful_shutdown=int(2 * limits.shutdown_seconds) + 1,
        )
        self._server = uvicorn.Server(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = 0
        self._error: BaseException | None = None

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until `end` is called. The calling thread, which owns the model, generates the replies.

        Args:
            ready: called when connections are accepted.

        Raises:
            Exception: the server failed.
        """
        thread = threading.Thread(target=self._serve, args=(ready,), name="http")
        thread.start()
        try:
            self._worker.run()
        finally:
            self.end()
            thread.join()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Stop accepting requests and let the running reply end; the second call cuts it. Any thread may call this."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # The loop has ended.
                loop.call_soon_threadsafe(self._begin_end)

    def _serve(self, ready: Callable[[], None]) -> None:
        try:
            asyncio.run(self._serve_in_loop(ready))
        except BaseException as error:  # noqa: BLE001  # Raised in the other thread.
            self._error = error
        finally:
            self._worker.stop()

    async def _serve_in_loop(self, ready: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._log_problem)
        serving = asyncio.create_task(self._server.serve(sockets=[self._bound]))
        while not self._server.started and not serving.done():
            await asyncio.sleep(0.001)
        if self._server.started:
            ready()
        await serving

    def _log_problem(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._log(f"error: {type(context.get('exception')).__name__}")

    def _begin_end(self) -> None:
        self._signals += 1
        self._server.should_exit = True
        self._worker.close()
        if self._signals > 1:
            self._worker.cancel_running()
        elif self._loop is not None:
            self._loop.call_later(self._limits.shutdown_seconds, self._worker.cancel_running)


@contextlib.contextmanager
def ending_signals(end: Callable[[], None]) -> Iterator[list[int]]:
    """Call `end` at SIGINT and SIGTERM; yield the list of the signals that came. For the main thread."""
    came: list[int] = []

    def handle(number: int, frame: object) -> None:
        came.append(number)
        end()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
