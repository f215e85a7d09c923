"""Thoughts of a reasoning model: where a reply's thought ends and its answer begins.

A reasoning model writes its thought between `<think>` and `</think>` before the answer. The opening tag may be the end
of the prompt, so that the reply contains only the closing one. White space around the tags belongs to neither part.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

OPENING_TAG, CLOSING_TAG = "<think>", "</think>"

ReasoningStart = Literal["none", "optional", "open"]
"""How a reply begins: without a thought, perhaps with `<think>`, or within a thought that the prompt has opened."""


class ReplyParts(NamedTuple):
    """Thought and answer of a reply, or pieces of them."""

    thought: str
    answer: str


class ReasoningSplitter:
    """Splitter of a reply that arrives in pieces. The result does not depend on how the text is split into pieces.

    A thought that is never closed takes the whole reply. Tags after the answer has begun are text.

    Args:
        start: how the reply begins.

    Attributes:
        has_thought: whether the reply has a thought, which may be empty.
    """

    def __init__(self, start: ReasoningStart) -> None:
        self._state: _State = _FIRST_STATES[start]
        self._held_text = ""
        self.has_thought = start == "open"

    @property
    def thinking(self) -> bool:
        """Whether the thought is open, so that the next text belongs to it."""
        return self._state in ("opened", "begun", "thought")

    @property
    def undecided(self) -> bool:
        """Whether the reply may still begin with a thought."""
        return self._state == "start"

    def push(self, text: str) -> ReplyParts:
        """Add the next piece of the reply and return what is now certain."""
        if self._state == "answer":
            return ReplyParts("", text)
        text, self._held_text, thought = self._held_text + text, "", ""
        if self._state in ("start", "opened"):
            text = self._read_opening_tag(text)
        if self._state in ("begun", "thought"):
            thought, text = self._read_thought(text)
        if self._state == "closed":
            text = text.lstrip()
            self._state = "answer" if text else "closed"
        return ReplyParts(thought, text if self._state == "answer" else "")

    def flush(self) -> ReplyParts:
        """Return the text that is held back, at the end of the reply."""
        held, self._held_text = self._held_text, ""
        if not self.thinking:
            return ReplyParts("", held)
        return ReplyParts(held.rstrip() if self._state == "thought" else held.strip(), "")

    def _read_opening_tag(self, text: str) -> str:
        """Return the text after the opening tag, or all of it without such a tag. Hold back what is uncertain."""
        content = text.lstrip()
        if content.startswith(OPENING_TAG):
            self._state, self.has_thought = "begun", True
            return content.removeprefix(OPENING_TAG)
        if OPENING_TAG.startswith(content):
            self._held_text = text
            return ""
        self._state = "begun" if self._state == "opened" else "answer"
        return text

    def _read_thought(self, text: str) -> tuple[str, str]:
        """Return the certain part of the thought, and the text after the closing tag."""
        if self._state == "begun":
            text = text.lstrip()
        end = text.find(CLOSING_TAG)
        if end >= 0:
            self._state = "closed"
            return text[:end].rstrip(), text[end + len(CLOSING_TAG) :]
        thought = text[: len(text) - _tag_beginning(text)].rstrip()
        self._held_text = text[len(thought) :]
        self._state = "thought" if thought else self._state
        return thought, ""


_State = Literal["start", "opened", "begun", "thought", "closed", "answer"]
"""Before a thought; before its first character, with or without an opening tag to come; within it; after it; beyond."""

_FIRST_STATES: dict[ReasoningStart, _State] = {"none": "answer", "optional": "start", "open": "opened"}


def split_reply(text: str, start: ReasoningStart = "open") -> ReplyParts:
    """Return thought and answer of a whole reply. The default is for text that is known to begin with a thought."""
    splitter = ReasoningSplitter(start)
    pushed, rest = splitter.push(text), splitter.flush()
    return ReplyParts(pushed.thought + rest.thought, pushed.answer + rest.answer)


def written_text(thought: str, answer: str) -> str:
    """Return a reply with the tags of its thought; an unfinished thought, without an answer, is not closed."""
    if not thought:
        return answer
    opened = f"{OPENING_TAG}\n{thought}"
    return f"{opened}\n{CLOSING_TAG}\n\n{answer}" if answer else opened


def _tag_beginning(text: str) -> int:
    """Return the length of the longest end of `text` that is the beginning of a closing tag."""
    longest = min(len(CLOSING_TAG) - 1, len(text))
    return next((length for length in range(longest, 0, -1) if CLOSING_TAG.startswith(text[-length:])), 0)
