"""Send a reply to a connection: whole, or in pieces as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from qwchat.events import Done, TextStep
from qwchat.server.api_errors import api_error_of, json_bytes
from qwchat.server.jobs import Event, Job
from qwchat.server.reply_formats import ReplyFormat

Discard = Callable[[Job], None]


class ApiResponse(JSONResponse):
    """A JSON response with control characters escaped."""

    def render(self, content: object) -> bytes:
        """Return the body."""
        return json_bytes(content)


async def whole_reply(job: Job, reply_format: ReplyFormat, receive: Receive, discard: Discard) -> Response:
    """Wait for a reply and return it as one object. Raises the error that ended it."""
    watcher = asyncio.create_task(_discard_on_disconnect(job, receive, discard))
    steps: list[TextStep] = []
    try:
        while True:
            for event in await job.next_events():
                if isinstance(event, TextStep):
                    steps.append(event)
                elif isinstance(event, Done):
                    return ApiResponse(
                        reply_format.whole(steps, event, job.queue_seconds),
                        headers={"X-Queue-Seconds": f"{job.queue_seconds:.3f}"},
                    )
                elif isinstance(event, Exception):
                    raise event
    finally:
        watcher.cancel()
        discard(job)


class StreamedReply(Response):
    """A reply as server-sent events.

    Args:
        job: the reply.
        reply_format: form of its pieces.
        discard: called when the client is gone, and at the end.
        comment_seconds: time without a piece after which a comment is sent.
    """

    media_type = "text/event-stream"

    def __init__(self, job: Job, reply_format: ReplyFormat, discard: Discard, comment_seconds: float) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._job, self._format, self._discard, self._comment_seconds = job, reply_format, discard, comment_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces as they arrive."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        watcher = asyncio.create_task(_discard_on_disconnect(self._job, receive, self._discard))
        try:
            opening = self._format.opening()
            pieces, ended = _data(opening) if opening else b"", False
            while not ended:
                if pieces:
                    await send({"type": "http.response.body", "body": pieces, "more_body": True})
                pieces, ended = await self._next_pieces()
            await send({"type": "http.response.body", "body": pieces, "more_body": False})
        finally:
            watcher.cancel()
            self._discard(self._job)

    async def _next_pieces(self) -> tuple[bytes, bool]:
        """Return the pieces that have arrived, and whether they are the last."""
        try:
            events = await asyncio.wait_for(self._job.next_events(), self._comment_seconds)
        except TimeoutError:
            return b": the model is busy\n\n", False
        pieces = b"".join(self._encode(event) for event in events)
        ended = any(isinstance(event, Done | Exception) for event in events)
        return pieces, ended

    def _encode(self, event: Event) -> bytes:
        if isinstance(event, TextStep):
            piece = self._format.piece(event)
            return _data(piece) if piece else b""
        if isinstance(event, Done):
            return b"".join(map(_data, self._format.closing(event, self._job.queue_seconds))) + b"data: [DONE]\n\n"
        return _data(api_error_of(event).body) if isinstance(event, Exception) else b""


def _data(value: object) -> bytes:
    return b"data: " + json_bytes(value) + b"\n\n"


async def _discard_on_disconnect(job: Job, receive: Receive, discard: Discard) -> None:
    """Cancel a reply when its connection is closed. The body of the request has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    discard(job)
