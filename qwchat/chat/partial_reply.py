"""A reply while it is generated."""

from __future__ import annotations

from qwchat.events import Done, TextEvent, TextStep


class PartialReply:
    """The text and tokens received so far, and the end of the reply once it came.

    Attributes:
        text: all text, with that of the thought but without its tags.
        thought: the text of the thought.
        answer: the text without the thought.
        token_ids: tokens of an engine; a server does not report them.
        tokens: number of tokens.
        reasoning_tokens: number of tokens of the thought.
        done: the end of the reply.
    """

    def __init__(self) -> None:
        self.text = self.thought = self.answer = ""
        self.token_ids: list[int] = []
        self.tokens = self.reasoning_tokens = 0
        self.done: Done | None = None

    def note(self, event: TextEvent) -> None:
        """Add the next event of the reply."""
        if isinstance(event, TextStep):
            self.text += event.text
            self.thought += event.text if event.reasoning else ""
            self.answer += "" if event.reasoning else event.text
            self.tokens += event.tokens
            self.reasoning_tokens += event.tokens if event.reasoning else 0
            if event.token_id is not None:
                self.token_ids.append(event.token_id)
        elif isinstance(event, Done):
            self.done = event
