"""The thread that owns the model: it takes one request after another from a queue."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from qwchat.events import Done, TextStep
from qwchat.server.api_errors import api_error_of, busy
from qwchat.server.jobs import Job
from qwchat.server.kept_contexts import KeptContexts
from qwchat.server.metrics import Metrics

if TYPE_CHECKING:
    from qwchat.api import Model


class ModelWorker:
    """The queue of replies and the loop that generates them, first come, first served.

    `run` is called in the thread that opened the model. Other threads call the rest.

    Args:
        model: the model.
        keep: number of KV caches.
        waiting: number of requests that may wait.
        metrics: where replies are counted.
        report: called with each error that is not a mistake of the request.
    """

    def __init__(
        self, model: Model, keep: int, waiting: int, metrics: Metrics, report: Callable[[Exception], None]
    ) -> None:
        self._model, self._contexts = model, KeptContexts(model, keep)
        self._waiting, self._metrics, self._report = waiting, metrics, report
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running: Job | None = None
        self._closed = self._stopped = False
        self._count_caches()

    @property
    def closed(self) -> bool:
        """Whether jobs are no longer accepted."""
        return self._closed

    def submit(self, job: Job) -> None:
        """Add a job to the queue. Raises ApiError if the queue is full or the server ends."""
        with self._changed:
            if self._closed:
                raise busy("the server is shutting down")
            if len(self._queue) >= self._waiting:
                raise busy(f"{self._waiting} requests are waiting: try again later")
            self._queue.append(job)
            self._metrics.queue_length = len(self._queue)
            self._changed.notify()

    def discard(self, job: Job, error: Exception) -> None:
        """Cancel a job. If it still waits, it leaves the queue with `error`."""
        job.cancel()
        self.expire(job, error)

    def expire(self, job: Job, error: Exception) -> None:
        """Take a job that still waits out of the queue and end it with `error`."""
        with self._changed:
            try:
                self._queue.remove(job)
            except ValueError:
                return
            self._metrics.queue_length = len(self._queue)
        job.add(error)

    def close(self) -> None:
        """Accept jobs no longer, and refuse those that wait. The running one goes on."""
        with self._changed:
            self._closed = True
            waiting = list(self._queue)
        for job in waiting:
            self.discard(job, busy("the server is shutting down"))

    def cancel_running(self) -> None:
        """Cut the running reply at the next token."""
        if (job := self._running) is not None:
            job.cancel()

    def stop(self) -> None:
        """Let `run` return after the running job."""
        with self._changed:
            self._closed = self._stopped = True
            self._changed.notify()

    def run(self) -> None:
        """Generate replies until `stop` is called."""
        while (job := self._next()) is not None:
            self._metrics.running = 1
            try:
                self._generate(job)
            finally:
                self._running, self._metrics.running = None, 0
                self._count_caches()

    def _next(self) -> Job | None:
        """Return the next job as the running one; wait for it. Return None after `stop`."""
        with self._changed:
            while not self._queue:
                if self._stopped:
                    return None
                self._changed.wait()
            self._running = job = self._queue.popleft()
            self._metrics.queue_length = len(self._queue)
        return job

    def _generate(self, job: Job) -> None:
        job.start()
        if job.cancelled:
            job.add(busy("the request was cancelled"))
            return
        try:
            cached = self._contexts.choose(job.prompt.ids)
            for event in self._model.stream(job.prompt, job.request, lambda: job.cancelled, cached):
                if isinstance(event, TextStep):
                    job.add(event)
                elif isinstance(event, Done):
                    self._metrics.count_reply(event, job.queue_seconds)
                    job.add(event)
        except Exception as error:  # noqa: BLE001  # The request gets it as its answer, and the server goes on.
            self._metrics.count_failure()
            if api_error_of(error).status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                self._report(error)
            job.add(error)

    def _count_caches(self) -> None:
        self._metrics.kv_caches, self._metrics.kv_cache_tokens = self._contexts.count, self._contexts.tokens
        self._metrics.kv_cache_bytes = self._contexts.used_bytes
