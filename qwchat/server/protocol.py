"""Connections with limits of their own: slow and silent clients are dropped."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from qwchat.server.api_errors import bad_request, json_bytes
from qwchat.server.guards import CROWDED
from qwchat.server.server_limits import ServerLimits

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

_RESET_AT_ONCE = struct.pack("ii", 1, 0)  # Linger on close for 0 seconds.


class LimitedProtocol(H11Protocol):
    """An HTTP/1.1 connection of uvicorn that ends when its client is too slow.

    The head of a request must arrive in time, and what is sent must be read in time. Requests that are not HTTP get an
    error in the form of the others.

    Args:
        limits: the limits.
        others: what `H11Protocol` takes.
    """

    def __init__(self, limits: ServerLimits, **others: Any) -> None:
        super().__init__(**others)
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # As in uvicorn.
        """Accept a connection, unless there are far too many."""
        super().connection_made(transport)
        if len(self.connections) > 2 * self._limits.connections:
            self._drop()
            return
        self.app_state = {**self.app_state, CROWDED: len(self.connections) > self._limits.connections}
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Read what arrived."""
        super().data_received(data)
        if self.transport.is_closing():
            self._close_later()
        elif self._answers_request():
            self._stop_head_timer()
        else:
            self._await_head()

    def on_response_complete(self) -> None:
        """Go on after a response; what it left unread by the client must be read in time."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._close_later()

    def shutdown(self) -> None:
        """Close the connection after its response."""
        super().shutdown()
        if self.transport.is_closing():
            self._close_later()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection without requests."""
        super().timeout_keep_alive_handler()
        self._close_later()

    def pause_writing(self) -> None:
        """Note that the client does not read."""
        super().pause_writing()
        self._close_later()

    def resume_writing(self) -> None:
        """Note that the client reads again."""
        super().resume_writing()
        self._stop_stall_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_head_timer()
        super().connection_lost(exc)
        self._stop_stall_timer()

    def send_400_response(self, msg: str) -> None:
        """Answer something that is not HTTP, and close the connection."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._drop()
            return
        body = json_bytes(bad_request("the request is not valid HTTP/1.1, or its head is too large").body)
        length = (b"content-length", str(len(body)).encode())
        headers = [(b"content-type", b"application/json"), length, (b"connection", b"close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _drop(self) -> None:
        """Reset the connection, so that the system keeps nothing of what its client has not read."""
        opened = self.transport.get_extra_info("socket")
        if opened is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_ONCE)
        self.transport.abort()

    def _answers_request(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request.
        return cycle is not None and not cycle.response_complete

    def _await_head(self) -> None:
        """Start the time for the head of a request, unless it runs already."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.head_seconds, self._drop)

    def _close_later(self) -> None:
        """Drop the connection if its client does not read in time."""
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self._limits.stall_seconds, self._drop)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


def protocol_factory(limits: ServerLimits) -> type[asyncio.Protocol]:
    """Return the class of connections with these limits, as uvicorn takes it."""

    class Connection(LimitedProtocol):
        """A connection with the limits of the server."""

        def __init__(
            self,
            config: Config,
            server_state: ServerState,
            app_state: dict[str, Any],
            _loop: asyncio.AbstractEventLoop | None = None,
        ) -> None:
            super().__init__(limits, config=config, server_state=server_state, app_state=app_state, _loop=_loop)

    return Connection
