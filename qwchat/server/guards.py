"""What every request must pass before an endpoint sees it: host, origin, token. Also the line in the log."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwchat.server.api_errors import ApiError, api_error_of, busy
from qwchat.server.metrics import Metrics
from qwchat.server.replies import ApiResponse

CROWDED = "crowded"
"""Key of the connection's state that is true while there are too many connections."""
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_OPEN_PATHS = ("/health",)
"""Paths that need no token."""


@dataclass(frozen=True)
class AccessRules:
    """Who may use the server.

    Attributes:
        port: where it listens.
        head_bytes: limit of path and headers together.
        token: bearer token of every request; None for all programs that can connect.
        loopback: it listens on this machine only, so that requests must name this machine.
    """

    port: int
    head_bytes: int
    token: str | None = None
    loopback: bool = True

    def check(self, scope: Scope) -> None:
        """Raise ApiError for a request from a web page, to another host, without the token, or with a large head."""
        headers, path = Headers(scope=scope), scope["path"]
        size = sum(len(name) + len(value) for name, value in headers.raw) + len(path) + len(scope["query_string"])
        if size > self.head_bytes:
            raise ApiError(
                431, f"path and headers are larger than the limit of {self.head_bytes:,} bytes: shorten them"
            )
        hosts = headers.getlist("host")
        if self.loopback and not (len(hosts) == 1 and self._is_own(hosts[0])):
            raise ApiError(403, "the Host header does not name this machine: use 127.0.0.1 or localhost")
        origin = headers.get("origin")
        if origin is not None or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise ApiError(403, "web pages cannot use this server")
        if self.token is not None and path not in _OPEN_PATHS and not self._has_token(headers):
            message = "the bearer token is missing or wrong: send Authorization: Bearer TOKEN"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _is_own(self, host: str) -> bool:
        """Return whether a Host header names this machine and port. A page of another name could mean 127.0.0.1."""
        host = host.strip().lower()
        return any(host in (name, f"{name}:{self.port}") for name in _LOOPBACK_NAMES)

    def _has_token(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        expected = (self.token or "").encode()
        return hmac.compare_digest(given.strip().encode("utf-8", "replace"), expected) and kind.lower() == "bearer"


class GuardedApp:
    """The application behind the rules. Answers each error in one form, counts and logs each request.

    Args:
        app: the application.
        rules: who may use it.
        metrics: where requests are counted.
        paths: paths of the endpoints; others are counted and logged as `other`.
        log: called with a line per request.
    """

    def __init__(
        self, app: ASGIApp, rules: AccessRules, metrics: Metrics, paths: frozenset[str], log: Callable[[str], None]
    ) -> None:
        self._app, self._rules, self._metrics, self._paths, self._log = app, rules, metrics, paths, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        began, status = time.monotonic(), 0

        async def record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                if scope.get("state", {}).get(CROWDED):
                    raise busy("too many connections are open: try again later")
                self._rules.check(scope)
                await self._app(scope, receive, record)
            except ClientDisconnect:
                status = status or 499
            except Exception as error:  # noqa: BLE001  # It becomes an answer, or a line in the log.
                if status:
                    self._log(f"error: {type(error).__name__}")
                else:
                    await error_response(error)(scope, receive, record)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.count_request(path, status)
            seconds = time.monotonic() - began
            self._log(f"{scope['method'] if path != 'other' else '-'} {path} {status} {seconds:.3f} s")


def error_response(error: Exception) -> ApiResponse:
    """Return the answer to a request that failed."""
    found = api_error_of(error)
    return ApiResponse(found.body, found.status, {**found.headers, "Connection": "close"})
