"""One HTTP request at a time, received by a thread of its own, so that waiting for the server can be cancelled."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

from quant.wording import Argument, ArgumentMessage
from qwchat.errors import EndpointError

if TYPE_CHECKING:
    import ssl

Cancel = Callable[[], bool]

CONNECT_SECONDS = 15.0
_POLL_SECONDS = 0.05  # How often `cancel` is asked while the server is silent.
_MAX_WAITING = 64  # pieces of at most 64 KiB that were received and not read


class CancelledError(Exception):
    """The caller cancelled the request; the connection is closed."""


@dataclass(frozen=True)
class HttpRequest:
    """A request.

    Attributes:
        method: `GET` or `POST`.
        url: the whole URL, without user and password.
        headers: header fields.
        body: bytes to send.
        seconds: longest time without any byte from the server.
        uses_proxies: follow the proxy variables of the environment.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    seconds: float
    uses_proxies: bool


@dataclass(frozen=True)
class Head:
    """Status and header fields of a response; their names are in lower case."""

    status: int
    headers: Mapping[str, str]

    @property
    def content_type(self) -> str:
        """Media type, without parameters, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True)
class _End:
    failure: Exception | None


class Exchange:
    """A request that is being sent, and its response. Leaving the context closes the connection at once.

    Args:
        request: the request.
        name: name of the server for messages.
        cancel: returns True to stop waiting.
    """

    def __init__(self, request: HttpRequest, name: str, cancel: Cancel | None = None) -> None:
        self._request, self._name, self._cancel = request, name, cancel
        self._received: queue.Queue[Head | bytes | _End] = queue.Queue(_MAX_WAITING)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        threading.Thread(target=self._receive, name="endpoint", daemon=True).start()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, whatever the thread waits for."""
        self._closed.set()
        with self._lock:
            if self._socket is not None:
                # Not the method of an SSLSocket, which takes the TLS state away from the thread that reads.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def head(self) -> Head:
        """Wait for the beginning of the response. Raises EndpointError, CancelledError."""
        item = self._next()
        assert isinstance(item, Head), "the thread sends the head first"
        return item

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it arrives. Raises EndpointError, CancelledError."""
        while isinstance(item := self._next(), bytes):
            yield item

    def read(self, limit: int) -> bytes:
        """Return the body, or its first `limit` bytes. Raises EndpointError, CancelledError."""
        body = b""
        for piece in self.pieces():
            body += piece
            if len(body) >= limit:
                break
        return body[:limit]

    def _next(self) -> Head | bytes | _End:
        while True:
            if self._cancel is not None and self._cancel():
                self.close()
                raise CancelledError
            try:
                item = self._received.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(item, _End) and item.failure is not None:
                raise item.failure
            return item

    def _receive(self) -> None:
        """Send the request and receive the response, in the thread."""
        import httpx2

        request, failure = self._request, EndpointError(f"{self._name} could not be asked: try again")
        ended: Exception | None = failure
        seconds = httpx2.Timeout(request.seconds, connect=min(CONNECT_SECONDS, request.seconds))
        try:
            with (
                httpx2.Client(verify=_tls_context(), timeout=seconds, trust_env=request.uses_proxies) as client,
                client.stream(
                    request.method,
                    request.url,
                    content=request.body,
                    headers=request.headers,
                    extensions={"trace": self._trace},
                ) as response,
            ):
                # Redirects are not followed, so that a key goes to no other host.
                self._put(Head(response.status_code, {name.lower(): text for name, text in response.headers.items()}))
                for piece in response.iter_raw():
                    self._put(piece)
            ended = None
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError, ValueError) as error:
            ended = _explain(error, self._name, request.seconds)
        except CancelledError:
            pass
        finally:
            with contextlib.suppress(CancelledError):
                self._put(_End(ended))

    def _put(self, item: Head | bytes | _End) -> None:
        """Pass an item on. Raises CancelledError once the exchange is closed."""
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._received.put(item, timeout=_POLL_SECONDS)
                return
        raise CancelledError

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Keep the socket of the connection, which `close` shuts down."""
        stream = info.get("return_value")
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")) and stream is not None:
            with self._lock:
                found = stream.get_extra_info("socket")
                self._socket = found if isinstance(found, socket.socket) else self._socket
            if self._closed.is_set():
                raise CancelledError


@lru_cache(maxsize=1)
def _tls_context() -> ssl.SSLContext:
    """Return the settings of TLS with the certificates to trust, which take some time to read."""
    import httpx2

    return httpx2.create_ssl_context()


def _explain(error: Exception, name: str, seconds: float) -> EndpointError:
    """Return the error for a connection that failed, as one line with a remedy."""
    import httpx2

    if isinstance(error, httpx2.ConnectTimeout):
        return EndpointError(f"cannot connect to {name} (no answer): check the endpoint and the network")
    if isinstance(error, httpx2.TimeoutException):
        silence = f"{name} sent nothing for {seconds:g} s: check the server, or allow more time with "
        return EndpointError(ArgumentMessage(silence, Argument("endpoint_timeout")))
    reason = " ".join(str(error).split())[:200]
    if "CERTIFICATE_VERIFY_FAILED" in reason or "certificate" in reason.lower():
        return EndpointError(f"the certificate of {name} is not trusted ({reason}): SSL_CERT_FILE may name its issuer")
    if isinstance(error, httpx2.ProxyError):
        return EndpointError(f"the proxy for {name} refused the connection ({reason}): check HTTPS_PROXY and NO_PROXY")
    if isinstance(error, httpx2.ConnectError):
        return EndpointError(f"cannot connect to {name} ({reason}): check the endpoint, and that its server runs")
    if isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError | httpx2.WriteError):
        return EndpointError(f"{name} closed the connection before its answer was complete: try again")
    return EndpointError(f"{name} could not be asked ({reason}): check the endpoint")
