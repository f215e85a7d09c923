"""A reply on its way from the model's thread to a connection, and its events."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from qwchat.events import Done, TextEvent
from qwchat.request import Prompt, Request
from qwchat.server.api_errors import ApiError

Event = TextEvent | Exception
"""An event of a reply, or the error that ended it."""


class Job:
    """One reply. The model's thread adds events; a connection takes them, in the event loop that made the job.

    The model never waits for a reader: if the reader is too slow, the reply is cancelled.

    Args:
        prompt: the rendered prompt.
        request: how to generate the reply.
        seconds: time for the reply in the model's thread.
        buffered: number of events that may wait for the reader.

    Attributes:
        expiry: the timer that takes the job out of the queue, if there is one.
    """

    def __init__(self, prompt: Prompt, request: Request, seconds: float, buffered: int) -> None:
        self.prompt, self.request = prompt, request
        self._queued_at, self._started_at = time.monotonic(), 0.0
        self.expiry: asyncio.TimerHandle | None = None
        self._seconds, self._buffered = seconds, buffered
        self._events: deque[Event] = deque()
        self._loop, self._arrived = asyncio.get_running_loop(), asyncio.Event()
        self._cancelled = self._overflowed = False

    @property
    def queue_seconds(self) -> float:
        """Time in the queue, until now if the reply has not begun."""
        return (self._started_at or time.monotonic()) - self._queued_at

    @property
    def cancelled(self) -> bool:
        """Whether the model should stop: the reader is gone or too slow, or the time is over."""
        return self._cancelled or bool(self._started_at and time.monotonic() - self._started_at > self._seconds)

    def cancel(self) -> None:
        """Stop the reply at the next token. Any thread may call this."""
        self._cancelled = True

    def start(self) -> None:
        """Record that the model's thread begins."""
        self._started_at = time.monotonic()

    def add(self, event: Event) -> None:
        """Add an event. Done or an error is the last one. Any thread may call this."""
        if self._overflowed:
            if not isinstance(event, Done | Exception):
                return
            event = ApiError(408, "the reply was cut because its reader was too slow")
        elif len(self._events) >= self._buffered and not isinstance(event, Done | Exception):
            self._overflowed = self._cancelled = True
            return
        self._events.append(event)
        try:
            self._loop.call_soon_threadsafe(self._arrived.set)
        except RuntimeError:  # The loop is closed, so the events are not read.
            self.cancel()

    async def next_events(self) -> list[Event]:
        """Return the events that have arrived; wait for the first one."""
        await self._arrived.wait()
        self._arrived.clear()
        return [self._events.popleft() for _ in range(len(self._events))]
