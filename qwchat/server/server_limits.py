"""Limits of a server. What exceeds one is refused or cut, and the server goes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerLimits:
    """Limits of a server.

    Attributes:
        body_bytes: body of a request.
        json_values: values in a body.
        json_depth: nested objects and arrays in a body.
        head_bytes: first line and headers of a request.
        messages: messages of a conversation.
        stop_strings: stop strings of a request.
        connections: open connections; beyond them requests are refused, and beyond twice as many connections are
            closed.
        waiting: requests in the queue.
        buffered_events: events of a reply that its reader has not taken yet.
        head_seconds: time for the first line and the headers to arrive.
        body_seconds: time for a body to arrive.
        stall_seconds: time for a reader to take what was sent.
        queue_seconds: time in the queue.
        reply_seconds: time of a reply, prefill included.
        keep_alive_seconds: time that a connection stays open without a request.
        shutdown_seconds: time of the running reply after the server was told to end.
        comment_seconds: time without a token after which a stream gets a comment, so that its reader keeps waiting.
    """

    body_bytes: int = 4 << 20
    json_values: int = 500_000
    json_depth: int = 64
    head_bytes: int = 16 << 10
    messages: int = 4096
    stop_strings: int = 16
    connections: int = 128
    waiting: int = 64
    buffered_events: int = 1024
    head_seconds: float = 15.0
    body_seconds: float = 60.0
    stall_seconds: float = 30.0
    queue_seconds: float = 600.0
    reply_seconds: float = 3600.0
    keep_alive_seconds: int = 30
    shutdown_seconds: float = 10.0
    comment_seconds: float = 10.0
