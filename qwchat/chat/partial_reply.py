"""A reply while it is generated."""

from __future__ import annotations

from qwchat.events import Done, TextEvent, TextStep


class PartialReply:
    """The text and tokens received so far, and the end of the reply once it came."""

    def __init__(self) -> None:
        self.text = ""
        self.token_ids: list[int] = []
        self.reasoning_tokens = 0
        self.done: Done | None = None

    def note(self, event: TextEvent) -> None:
        """Add the next event of the reply."""
        if isinstance(event, TextStep):
            self.text += event.text
            if event.token_id is not None:
                self.token_ids.append(event.token_id)
                self.reasoning_tokens += event.reasoning
        elif isinstance(event, Done):
            self.done = event
