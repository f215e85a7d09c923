"""Stop strings: end a reply at a text instead of a token."""

from __future__ import annotations

from collections.abc import Sequence

from quant.wording import Argument, ArgumentMessage
from qwchat.errors import UsageError


class StopStrings:
    """Search for stop strings in text that arrives in pieces.

    The reply ends before the stop string that is completed first. If one character completes several, the longest
    counts. The result does not depend on how the text is split into pieces.

    Args:
        stops: strings that end the reply. They are not part of it.

    Raises:
        UsageError: a stop string is empty.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if not all(stops):
            remedy = "leave it out to stop only at the end of the reply"
            raise UsageError(ArgumentMessage(Argument("stop"), f" must not be empty: {remedy}"))
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held_text = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Add the next piece of text.

        Returns:
            The text that certainly belongs to the reply, and whether a stop string was found. Text that may begin a
            stop string is held back. After a stop string, the text is always empty.
        """
        if self._stopped:
            return "", True
        buffer = self._held_text + text
        found = [(at + len(stop), at) for stop in self._stops if (at := buffer.find(stop)) >= 0]
        if found:
            self._stopped, self._held_text = True, ""
            return buffer[: min(found)[1]], True
        keep = self._held_length(buffer)
        self._held_text = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep], False

    def flush(self) -> str:
        """Return the text that is held back, at the end of a reply without a stop string."""
        held, self._held_text = self._held_text, ""
        return held

    def _held_length(self, buffer: str) -> int:
        """Return the length of the longest suffix of `buffer` that is the beginning of a stop string."""
        for length in range(min(self._longest - 1, len(buffer)), 0, -1):
            end = buffer[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
