"""A server that speaks the OpenAI protocol, or breaks it, as a script says. It listens on loopback."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tests.clocks import PATIENCE_SECONDS, wait_for


@dataclass(frozen=True)
class Seen:
    """A request that arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Connection:
    """One connection, from the server's side."""

    def __init__(self, connection: socket.socket, server: ScriptedServer) -> None:
        self._connection, self._server = connection, server

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def head(self, status: int = 200, content_type: str = "text/event-stream", **fields: str) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Type: {content_type}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def chunk(self, data: bytes) -> None:
        """Send a piece of a body in chunks."""
        if data:
            self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def wait_until_closed(self) -> None:
        """Be silent until the client closes the connection."""
        with contextlib.suppress(OSError):
            while self._connection.recv(1024):
                pass
        self._server.closed_by_client += 1


Action = Callable[[Connection], object]


def event(value: object) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def delta(text: str = "", reason: str | None = None, **fields: Any) -> bytes:
    """Return an event with some text."""
    content = {"content": text} if text else {}
    return event({"choices": [{"index": 0, "delta": {**content, **fields}, "finish_reason": reason}]})


USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}}
DONE = b"data: [DONE]\n\n"


def stream(*pieces: bytes, content_type: str = "text/event-stream", cut: bool = False) -> Action:
    """Return an action that sends the pieces as they are; `cut` ends the connection within the body."""

    def act(connection: Connection) -> None:
        connection.head(content_type=content_type, Transfer_Encoding="chunked")
        for piece in pieces:
            connection.chunk(piece)
        if not cut:
            connection.send(b"0\r\n\r\n")

    return act


def reply(*texts: str, usage: dict[str, Any] | None = None) -> Action:
    """Return an action that streams a whole reply, one event for each text."""
    end = event({"choices": [], "usage": USAGE if usage is None else usage})
    return stream(delta(role="assistant"), *map(delta, texts), delta(reason="stop"), end, DONE)


def silence(*pieces: bytes) -> Action:
    """Return an action that sends some pieces and nothing more."""

    def act(connection: Connection) -> None:
        connection.head(Transfer_Encoding="chunked")
        for piece in pieces:
            connection.chunk(piece)
        connection.wait_until_closed()

    return act


def answer(status: int, body: object = None, content_type: str = "application/json", **fields: str) -> Action:
    """Return an action that answers with a status and a body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def act(connection: Connection) -> None:
        connection.head(status, content_type, Content_Length=str(len(data)), **fields)
        connection.send(data)

    return act


def models(*names: str, **fields: Any) -> Action:
    """Return an action that lists models."""
    return answer(200, {"object": "list", "data": [{"id": name, "object": "model", **fields} for name in names]})


@dataclass
class ScriptedServer:
    """The server, in threads of this process.

    Attributes:
        replies: actions for chat completions, one after the other; the last one is repeated.
        others: actions by path; other paths do not exist.
        seen: the requests that arrived.
        closed_by_client: how many silent connections the client has closed.
        name: host and port.
    """

    replies: Sequence[Action] = ()
    others: dict[str, Action] = field(default_factory=lambda: {"/v1/models": models("first", max_model_len=2048)})
    seen: list[Seen] = field(default_factory=list)
    closed_by_client: int = 0
    name: str = ""

    def __enter__(self) -> ScriptedServer:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.name = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._asked = 0
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def url(self) -> str:
        return f"http://{self.name}"

    @property
    def chats(self) -> list[Any]:
        """The bodies of the requests for replies."""
        return [each.body for each in self.seen if each.path.endswith("/chat/completions")]

    def wait_until_closed(self, count: int = 1) -> None:
        wait_for(lambda: self.closed_by_client >= count, "the client's end of the connection")

    def _accept(self) -> None:
        for connection in self._connections():
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _connections(self) -> Iterator[socket.socket]:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE_SECONDS)
            yield connection

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            request = _read_request(connection)
            if request is None:
                return
            self.seen.append(request)
            action = self.others.get(request.path)
            if action is None and request.path.endswith("/chat/completions") and self.replies:
                action = self.replies[min(self._asked, len(self.replies) - 1)]
                self._asked += 1
            (action or answer(404, {"error": "not found"}))(Connection(connection, self))
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)


def _read_request(connection: socket.socket) -> Seen | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    method, path, _ = first.split(" ")
    return Seen(method, path, headers, json.loads(body) if body else None)
