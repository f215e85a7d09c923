"""Requests that are wrong, slow or endless: each gets an answer with a status of 4xx, and the server goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.server.malformed import HEADS, PATHS, TEXTS, malformed, request
from tests.server.processes import ServerProcess, read_all, server_process
from tests.tiers import count

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(mini_folder: Path) -> Iterator[ServerProcess]:
    limits = {"head_seconds": 0.5, "body_seconds": 0.5, "keep_alive_seconds": 1, "body_bytes": 1_000_000}
    with server_process(mini_folder, "--quiet", "--threads", "1", "--ctx", "512", **limits) as running:
        yield running
        assert httpx2.get(f"{running.url}/health").json() == {"status": "ok"}
        found = httpx2.post(f"{running.url}/v1/completions", json={"prompt": "a", "max_tokens": 2})
        assert found.json()["usage"]["completion_tokens"] == 2
        assert running.errors.count("\n") == 1, running.errors


def refusal(server: ServerProcess, data: bytes) -> int:
    """Return the status of the answer to a wrong request, after a look at its body; 0 for a closed connection."""
    with server.connect() as connection:
        connection.sendall(data)
        answer = read_all(connection)
    if not answer:
        return 0
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert 400 <= status < 500, (data[:500], answer[:500])
    assert b"Traceback" not in answer
    assert b"application/json" in head
    if body:
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert "\n" not in error["message"]
    return status


def test_random_faults(server: ServerProcess) -> None:
    rng = random.Random(15)
    statuses = [refusal(server, malformed(rng)) for _ in range(count(1000, 40))]
    assert {400, 404, 405, 415} <= {*statuses}
    assert 0 not in statuses


@pytest.mark.slow
def test_each_fault(server: ServerProcess) -> None:
    for data in HEADS:
        assert refusal(server, data), data
    for text in TEXTS:
        assert refusal(server, request(text)) == 400, text[:100]
    for path in PATHS:
        assert refusal(server, request(b"", path.replace(" ", "%20"), "GET")) in (400, 404), path


def test_a_large_body_is_refused(server: ServerProcess) -> None:
    body = json.dumps({"prompt": "a" * 1_000_001}).encode()
    # A client that sends all of it first gets the answer, too.
    assert httpx2.post(f"{server.url}/v1/completions", content=body * 3, headers=JSON).status_code == 413
    assert refusal(server, request(body * 5)[:400]) == 413
    chunked = request(b"")[: -len("Content-Length: 0\r\n\r\n")] + b"Transfer-Encoding: chunked\r\n\r\n"
    assert refusal(server, chunked + b"fffff\r\n" + body.ljust(0xFFFFF) + b"\r\n0\r\n\r\n") == 413


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_head_that_never_ends_closes_the_connection(server: ServerProcess, sent: bytes) -> None:
    assert refusal(server, sent) == 0


def test_a_body_that_never_ends_is_refused(server: ServerProcess) -> None:
    assert refusal(server, request(b'{"prompt": "a"}')[:-5]) == 408


def test_a_kept_connection_without_requests_is_closed(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_all(connection).endswith(b'{"status":"ok"}')
