"""The text of a reply as it grows: thought and answer apart, cut at a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from qwchat.reasoning import ReasoningSplitter, ReasoningStart, ReplyParts
from qwchat.text.stop_strings import StopStrings


class ReplyText:
    """Text of a reply.

    It holds back text that may begin a tag, and text that may begin a stop string.

    Args:
        reasoning: how the reply begins.
        stop: texts that end the answer.

    Attributes:
        splitter: tells the thought from the answer.
        stopped: whether a stop string ended the reply.
    """

    def __init__(self, reasoning: ReasoningStart, stop: Sequence[str]) -> None:
        self.splitter, self._stops = ReasoningSplitter(reasoning), StopStrings(stop)
        self._raw: list[str] = []
        self._thought: list[str] = []
        self._answer: list[str] = []
        self._answer_length = 0  # The answer with a stop string and what follows it.
        self.stopped = False

    def push(self, text: str, *, ends: bool = False) -> ReplyParts:
        """Add the next text of the reply, `ends`: its last. Return what is final."""
        self._raw.append(text)
        thought, answer = self.splitter.push(text)
        if ends:
            rest = self.splitter.flush()
            thought, answer = thought + rest.thought, answer + rest.answer
        self._answer_length += len(answer)
        answer, self.stopped = self._stops.push(answer)
        if ends and not self.stopped:
            answer += self._stops.flush()
        self._thought.append(thought)
        self._answer.append(answer)
        return ReplyParts(thought, answer)

    @property
    def starts_line(self) -> bool:
        """Whether the text ends with a newline, so that the next one begins a line."""
        return self._raw[-1].endswith("\n")

    @property
    def thought(self) -> str:
        """The thought without its tags."""
        return "".join(self._thought)

    @property
    def answer(self) -> str:
        """The answer."""
        return "".join(self._answer)

    @property
    def raw(self) -> str | None:
        """Thought, tags and answer as the model wrote them; None if the reply has no thought."""
        if not self.splitter.has_thought:
            return None
        whole = "".join(self._raw)
        return whole[: len(whole) - self._answer_length] + self.answer
