"""What all endpoints of a server share: the model, its queue, limits and counters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request

from qwchat.server.api_errors import ApiError, busy
from qwchat.server.chat_body import check_length
from qwchat.server.fields import Fields, parse_body
from qwchat.server.jobs import Job
from qwchat.server.metrics import Metrics
from qwchat.server.model_worker import ModelWorker
from qwchat.server.reply_fields import ReplySpec
from qwchat.server.server_limits import ServerLimits

if TYPE_CHECKING:
    from qwchat.api import Model

Result = TypeVar("Result")
_JSON = "application/json"
_LONGEST_NUMBER = 20  # digits
_DRAINED = 4
"""A body of up to so many times the limit is read and dropped: most clients read the answer after they sent all."""


@dataclass(frozen=True)
class Service:
    """What all endpoints share.

    Attributes:
        model: the model; only its text parts are used here, in one thread at a time.
        names: its names for clients; the first one is shown.
        worker: its queue.
        metrics: counters.
        limits: limits of requests.
        loop_guard: repeated tokens after which a reply ends; 0 is off.
    """

    model: Model
    names: tuple[str, ...]
    worker: ModelWorker
    metrics: Metrics
    limits: ServerLimits = field(default_factory=ServerLimits)
    loop_guard: int = 0
    _readers: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="requests"), init=False
    )

    @property
    def name(self) -> str:
        """Name of the model that is shown."""
        return self.names[0]

    async def read(self, request: Request, read: Callable[[Fields], Result]) -> Result:
        """Return what `read` makes of the body, in the thread that reads requests.

        Parsing, rendering and encoding take a while, and the tokenizer is used in one thread at a time.

        Raises:
            ApiError: the body is too large, too slow or wrong.
            ClientDisconnect: the client is gone.
        """
        data = await self._body(request)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, lambda: read(parse_body(data, self.limits)))

    def submit(self, spec: ReplySpec, param: str) -> Job:
        """Queue a reply. Raises ApiError if the prompt, in the field `param`, is too long, or the queue is full."""
        check_length(spec.prompt, self.model.context, param)
        limits = self.limits
        job = Job(spec.prompt, spec.request, limits.reply_seconds, limits.buffered_events)
        self.worker.submit(job)
        late = ApiError(503, "the request waited too long: try again later", headers={"Retry-After": "10"})
        job.expiry = asyncio.get_running_loop().call_later(limits.queue_seconds, self.worker.expire, job, late)
        return job

    def discard(self, job: Job) -> None:
        """Cancel a reply, unless it has ended; its client is gone."""
        if job.expiry is not None:
            job.expiry.cancel()
        self.worker.discard(job, busy("the client is gone"))

    def close(self) -> None:
        """End the thread that reads requests."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    async def _body(self, request: Request) -> bytes:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != _JSON:
            raise ApiError(415, f"the body must be JSON: send the header Content-Type: {_JSON}")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "the body must not be compressed: leave Content-Encoding out")
        most = self.limits.body_bytes
        too_large = ApiError(413, f"the body is larger than the limit of {most:,} bytes: shorten it")
        announced = request.headers.get("content-length", "0")
        if not announced.isdecimal() or len(announced) > _LONGEST_NUMBER or int(announced) > _DRAINED * most:
            raise too_large
        data, size = bytearray(), 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    data += chunk if size <= most else b""
                    if size > _DRAINED * most:
                        break
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time: send it faster") from None
        if size > most:
            raise too_large
        return bytes(data)
