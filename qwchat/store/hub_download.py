"""Bytes of a repository's files, taken up again where a connection breaks.

The client of `huggingface_hub` makes the request: with its token, proxies, certificates, redirects, and its patience
with a busy hub. Most of a large body is then received straight into a buffer, since the HTTP library would hand it
through Python in pieces of 64 KiB, which takes three times as long as the transfer itself.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from qwchat.errors import HubError
from qwchat.store.hub import Repository
from qwchat.store.hub_errors import translated
from qwchat.store.hub_files import HubFile

if TYPE_CHECKING:
    import httpx2

BUFFER_BYTES = 1 << 20
"""A kill loses at most as many bytes; a broken connection loses none."""
_RETRIES = 5  # after connections that brought no byte
_PAUSE_SECONDS = 1.0  # before a request is repeated
_PARTIAL_CONTENT = 206


class Sink(Protocol):
    """Where downloaded bytes go."""

    def write(self, data: memoryview) -> None:
        """Write the next bytes. `data` is used again afterwards."""

    def restart(self) -> None:
        """Remove what was written: the hub sends the file from its start."""


def download(repository: Repository, file: HubFile, sink: Sink, start: int = 0, stop: int | None = None) -> None:
    """Write bytes start..stop of a file (to its end by default) to `sink`; what `sink` raises stops it.

    Raises:
        HubError: the hub does not answer, or not with what it announced.
        ModelError: the file cannot be had.
        OSError: `sink` cannot be written.
    """
    stop = file.size if stop is None else stop
    with translated(repository.name, repository.revision, file.name):
        from httpx2 import NetworkError, RemoteProtocolError, TimeoutException
        from huggingface_hub.utils import hf_raise_for_status

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # It would report each request that it repeats.
        retries, reached, furthest = _RETRIES, start, start
        while reached < stop:
            try:
                with _request(repository, file, reached, stop) as response:
                    hf_raise_for_status(response)
                    if reached and response.status_code != _PARTIAL_CONTENT:
                        sink.restart()
                        reached = 0
                    for data in _received(response, _checked_length(response, repository, file, reached, stop)):
                        wanted = data[: stop - reached]
                        sink.write(wanted)
                        reached += len(wanted)
                        if reached == stop:
                            return
            except (NetworkError, RemoteProtocolError, TimeoutException):
                if reached <= furthest and not retries:
                    raise
            retries, furthest = (_RETRIES, reached) if reached > furthest else (retries - 1, furthest)
            if retries < 0:
                raise HubError(f"{repository.name}: {file.name} ends at byte {reached:,}; pull again to resume")
            time.sleep(_PAUSE_SECONDS)


def _request(repository: Repository, file: HubFile, start: int, stop: int) -> AbstractContextManager[httpx2.Response]:
    """Ask for bytes start..stop of a file."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, http_stream_backoff

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start or stop < file.size:
        headers["Range"] = f"bytes={start}-{stop - 1}"
    return http_stream_backoff(
        "GET",
        hf_hub_url(repository.name, file.name, revision=repository.revision),
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        retry_on_exceptions=(),
        retry_on_status_codes=(408, 429),
    )


def _checked_length(response: httpx2.Response, repository: Repository, file: HubFile, start: int, stop: int) -> int:
    """Return the bytes that follow. Raises HubError if the file has changed."""
    partial = response.status_code == _PARTIAL_CONTENT
    length, expected = response.headers.get("Content-Length"), stop - start if partial else file.size
    total = response.headers.get("Content-Range", f"/{file.size}").rpartition("/")[2]
    if length not in (None, str(expected)) or total not in ("*", str(file.size)):
        raise HubError(f"{repository.name}: {file.name} has another size than the hub has announced; pull again later")
    return expected


def _received(response: httpx2.Response, expected: int) -> Iterator[memoryview]:
    """Yield the body of a response of `expected` bytes: the first piece as the library has read it, then buffers."""
    pieces = response.iter_raw()
    first = next(pieces, b"")
    yield memoryview(first)
    connection = _connection(response)
    if connection is None:
        for piece in pieces:
            yield memoryview(piece)
    else:
        yield from _buffers(connection, expected - len(first))


def _connection(response: httpx2.Response) -> socket.socket | None:
    """Return the connection whose next bytes are those of the body; None if they are framed or encrypted."""
    stream = response.extensions.get("network_stream")
    if stream is None or response.http_version != "HTTP/1.1" or "Content-Length" not in response.headers:
        return None
    if "Transfer-Encoding" in response.headers:
        return None
    connection, tls = stream.get_extra_info("socket"), stream.get_extra_info("ssl_object")
    if not isinstance(connection, socket.socket) or (tls is not None and not isinstance(connection, ssl.SSLSocket)):
        return None  # Such as TLS within TLS, behind a proxy.
    return connection


def _buffers(connection: socket.socket, left: int) -> Iterator[memoryview]:
    """Receive `left` bytes and yield them in buffers; at a break, what has arrived. Raises httpx2.ReadError."""
    import httpx2

    buffer, filled = memoryview(bytearray(BUFFER_BYTES)), 0
    try:
        while left > filled:
            count = connection.recv_into(buffer[filled : min(len(buffer), left)])
            if not count:
                break
            filled += count
            if filled == len(buffer):
                yield buffer
                left, filled = left - filled, 0
    except OSError as error:
        yield buffer[:filled]
        raise httpx2.ReadError(str(error)) from error
    yield buffer[:filled]


def read_small(repository: Repository, file: HubFile, folder: Path) -> None:
    """Download a small file into `folder`, replacing what is there. Raises HubError, ModelError and OSError."""
    sink = _Memory(file.size)
    download(repository, file, sink)
    part = folder / f".{file.name}.part"
    part.write_bytes(sink.data)
    part.replace(folder / file.name)


class _Memory:
    """Bytes in memory, at most as many as the hub announced."""

    def __init__(self, size: int) -> None:
        self.data, self._size = b"", size

    def write(self, data: memoryview) -> None:
        """Add bytes. Raises HubError if they are more than announced."""
        if len(self.data) + len(data) > self._size:
            raise HubError("the hub sent more bytes than it announced; try again later")
        self.data += data

    def restart(self) -> None:
        """Remove what was written."""
        self.data = b""
