"""Assumptions of `qwchat.store` about the hub's client and the HTTP library under it."""

from __future__ import annotations

import inspect
import socket
import threading
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import http_stream_backoff

from qwchat.store.hub_download import BUFFER_BYTES, _connection, _received

BODY = bytes(range(256)) * (5 * BUFFER_BYTES // 512)


def test_the_client_waits_for_a_busy_hub() -> None:
    parameters = inspect.signature(http_stream_backoff).parameters
    assert {"method", "url", "retry_on_exceptions", "retry_on_status_codes"} <= set(parameters)
    assert isinstance(constants.HF_HUB_DOWNLOAD_TIMEOUT, int)


@pytest.mark.parametrize("together", [0, 1, 1000, 65_536, 300_000, len(BODY)])
def test_after_the_first_piece_the_connection_holds_the_rest(together: int) -> None:
    """Check that the library hands out all that it has read before its next read, whatever the headers bring."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY)
                connection.sendall(head + BODY[:together])
                connection.sendall(BODY[together:])

        thread = threading.Thread(target=answer)
        thread.start()
        with httpx2.stream("GET", f"http://127.0.0.1:{server.getsockname()[1]}/", trust_env=False) as response:
            assert _connection(response) is not None
            pieces = [bytes(piece) for piece in _received(response, len(BODY))]
        thread.join()
    assert b"".join(pieces) == BODY
    assert max(map(len, pieces[1:]), default=BUFFER_BYTES) == BUFFER_BYTES


class Stream:
    """The connection of a response, as the library describes it."""

    def __init__(self, **facts: object) -> None:
        self._facts = facts

    def get_extra_info(self, name: str) -> object:
        return self._facts.get(name)


@pytest.mark.parametrize(
    ("headers", "version", "facts"),
    [
        ({"Transfer-Encoding": "chunked"}, "HTTP/1.1", {}),
        ({"Transfer-Encoding": "chunked", "Content-Length": "9"}, "HTTP/1.1", {}),
        ({"Content-Length": "9"}, "HTTP/2", {}),
        ({"Content-Length": "9"}, "HTTP/1.1", {"ssl_object": object()}),  # TLS within TLS
        ({"Content-Length": "9"}, "HTTP/1.1", {"socket": None}),
    ],
)
def test_framed_and_encrypted_bodies_are_left_to_the_library(
    headers: dict[str, str], version: str, facts: dict[str, Any]
) -> None:
    with socket.socket() as connection:
        stream = Stream(**{"socket": connection} | facts)
        response: Any = SimpleNamespace(headers=headers, http_version=version, extensions={"network_stream": stream})
        assert _connection(response) is None
        response.headers, response.http_version = {"Content-Length": "9"}, "HTTP/1.1"
        response.extensions = {"network_stream": Stream(socket=connection)}
        assert _connection(response) is connection
