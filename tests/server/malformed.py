"""Requests that are wrong in many ways, as bytes for a connection."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

ASK = [{"role": "user", "content": "Hello"}]
FIELDS: dict[str, Any] = {
    "model": "mini-q4",
    "messages": ASK,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "seed": 1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "repetition_penalty": 1.1,
    "stop": ["a"],
    "max_tokens": 1,
    "max_completion_tokens": 1,
    "logprobs": True,
    "top_logprobs": 2,
    "stream": False,
    "stream_options": {},
    "response_format": {"type": "text"},
    "structured_outputs": {},
    "chat_template_kwargs": {},
    "continue_final_message": False,
    "add_generation_prompt": True,
    "guided_choice": ["a"],
}
VALUES: tuple[Any, ...] = (
    *(-1, 0.5, 10**30, -(10**30), 1e308, 2**64, "x", "", "\u0000", "\ud800", [], [[]], [None], {}, {"a": {}}),
    *([1, "a"], ["a"] * 20, [{"role": "user"}], [{"role": 5, "content": []}], {"type": "json_schema"}, {"choice": []}),
    *({"regex": "("}, {"type": 5}, {"messages": 1}, {"include_usage": "yes"}, [{"role": "tool", "content": "x"}]),
    *([{"role": "user", "content": [{"type": "text"}]}], [{"role": "user", "content": {"text": "x"}}], "a" * 100_000),
)
TEXTS = (
    *(b"", b"{", b"[]", b"5", b'"x"', b"null", b"{]", b'{"messages": NaN}', b'{"messages": Infinity}', b"\xff\xfe"),
    *(
        b'{"a": ' * 5000,
        b"[" * 100_000,
        b'{"temperature": ' + b"9" * 10_000 + b"}",
        b'{"messages": "\xff"}',
        b"\x00" * 50,
    ),
    *(
        b"--x\r\nContent-Disposition: form-data\r\n\r\n",
        b'{"messages": [],}',
        b"'{}'",
        b'{"messages": 1e999}',
        b"{} {}",
    ),
)
PATHS = (
    *("/", "/v1", "/v1/", "/v1/chat/completions/", "/v1/chat", "//v1/models", "/v1/models/../../etc/passwd", "/%00"),
    *("/v1/models/%2e%2e", "/health/x", "/metric?x=%0d%0aX: y", "/" + "a" * 5000, "/v1/%F0%28%8C%28", "/v1/models/x"),
)
METHODS = ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW", "get")
HEADS = (
    b"GET /health HTTP/1.1\r\n\r\n",  # Without Host.
    b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /health\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS.
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET  /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n: x\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX : y\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
    b"GET /\xc3\xa4 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}garbage\r\n0\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFFFFF\r\n{}\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
)


def request(
    body: bytes, path: str = "/v1/chat/completions", method: str = "POST", kind: str = "application/json"
) -> bytes:
    """Return a request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nConnection: close\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def malformed(rng: random.Random) -> bytes:
    """Return a request with one fault at least."""
    return rng.choice(_KINDS)(rng)


def _wrong_field(rng: random.Random) -> bytes:
    """Return a body with a field of a wrong type or out of range. Its last field, the conversation, is wrong anyway."""
    fields = {"messages": [{"role": "user"}], "max_tokens": 1, rng.choice([*FIELDS]): rng.choice(VALUES)}
    return request(json.dumps(fields).encode(), rng.choice(("/v1/chat/completions", "/v1/completions", "/tokenize")))


def _wrong_text(rng: random.Random) -> bytes:
    return request(rng.choice(TEXTS), rng.choice(("/v1/chat/completions", "/v1/completions", "/tokenize")))


def _cut_text(rng: random.Random) -> bytes:
    whole = json.dumps(FIELDS).encode()
    return request(whole[: rng.randrange(len(whole))])


def _wrong_path(rng: random.Random) -> bytes:
    return request(b"", rng.choice(PATHS).replace(" ", "%20"), rng.choice(("GET", "POST")))


def _wrong_method(rng: random.Random) -> bytes:
    return request(b"", "/v1/completions", rng.choice(METHODS))


def _wrong_type(rng: random.Random) -> bytes:
    return request(b"{}", kind=rng.choice(("text/plain", "", "application/xml", "application/json-seq", "x" * 5000)))


def _wrong_head(rng: random.Random) -> bytes:
    return rng.choice(HEADS)


def _changed_bytes(rng: random.Random) -> bytes:
    """Return a request whose head has some bytes changed; the length of its body is wrong as well."""
    whole = bytearray(request(json.dumps({**FIELDS, "n": 2}).encode()))
    for _ in range(rng.randrange(1, 8)):
        whole[rng.randrange(40)] = rng.randrange(256)
    return bytes(whole)


_KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    *(_wrong_field, _wrong_field, _wrong_text, _cut_text, _wrong_path, _wrong_method, _wrong_type, _wrong_head),
    _changed_bytes,
)
