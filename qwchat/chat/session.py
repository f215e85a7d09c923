"""A conversation: what was said, and the next reply to it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from qwchat.chat.controls import Controls
from qwchat.errors import UsageError
from qwchat.events import Done, TextEvent, TextStep
from qwchat.messages import Message

if TYPE_CHECKING:
    from qwchat.sampling import SamplingSettings

_SEED_BITS = 32  # Short enough to be read aloud and typed again.


class Talker(Protocol):
    """The part of ``qwchat.Model`` that a conversation needs."""

    def chat(
        self,
        messages: Sequence[Message],
        *,
        settings: SamplingSettings | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        cancel: Callable[[], bool] | None = None,
        speculate: bool = True,
    ) -> Iterator[TextEvent]:
        """Stream the reply to ``messages``."""

    @property
    def context(self) -> int:
        """Tokens that prompt and reply may fill together."""

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt that a conversation makes."""

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ``token_ids``."""


def fresh_seed() -> int:
    """A seed drawn by chance."""
    return secrets.randbits(_SEED_BITS)


class Session:
    """The turns of a conversation with ``model``.

    A question enters the conversation together with its reply, whole or interrupted. A question that got no word of a
    reply leaves no trace, except that ``retry`` can ask it again. ``revision`` counts the replies that were kept.
    """

    def __init__(self, model: Talker, controls: Controls, system: str | None = None) -> None:
        self.model = model
        self.controls = controls
        self.defaults = controls
        self.system = system
        self.turns: list[Message] = []
        self.revision = 0
        self._last_question: str | None = None

    @property
    def messages(self) -> list[Message]:
        """The system prompt, where there is one, and every turn."""
        head: list[Message] = [{"role": "system", "content": self.system}] if self.system is not None else []
        return head + self.turns

    def clear(self) -> None:
        """Forget every turn; the system prompt and the settings stay."""
        self.turns.clear()
        self._last_question = None

    def ask(self, question: str, cancel: Callable[[], bool] | None = None) -> Generator[TextEvent, None, None]:
        """Stream the reply to ``question``. What was said stays in the conversation however the reply ends."""
        self._last_question = question
        return self._reply(question, len(self.turns), self.controls.seed, cancel)

    def retry(self, cancel: Callable[[], bool] | None = None) -> Generator[TextEvent, None, None]:
        """Stream another reply to the last question, which takes the place of the old one once it says something.

        A new seed is drawn even where one is set, since the old one would give the old reply. Raises UsageError where
        nothing was asked yet.
        """
        if self._last_question is None:
            raise UsageError("nothing was asked yet, so there is nothing to retry")
        answered = len(self.turns) >= 2 and self.turns[-2]["content"] == self._last_question
        start = len(self.turns) - 2 if answered else len(self.turns)
        return self._reply(self._last_question, start, None, cancel)

    def _reply(
        self, question: str, start: int, seed: int | None, cancel: Callable[[], bool] | None
    ) -> Generator[TextEvent, None, None]:
        head = self.messages[: len(self.messages) - len(self.turns) + start]
        asked: Message = {"role": "user", "content": question}
        said = ""
        done: Done | None = None
        try:
            for event in self.model.chat(
                [*head, asked],
                settings=self.controls.settings,
                max_tokens=self.controls.max_tokens,
                seed=fresh_seed() if seed is None else seed,
                stop=self.controls.stop,
                cancel=cancel,
                speculate=self.controls.speculate,
            ):
                if isinstance(event, TextStep):
                    said += event.text
                elif isinstance(event, Done):
                    done = event
                yield event
        finally:
            self._keep(asked, start, said, done)

    def _keep(self, asked: Message, start: int, said: str, done: Done | None) -> None:
        complete = done is not None and done.finish_reason != "cancelled"
        text = done.text if done is not None else said
        if not (text or complete):
            return
        reply: Message = {"role": "assistant", "content": text}
        if done is not None and self.model.decode(done.token_ids) == text:
            reply["token_ids"] = done.token_ids
        self.turns[start:] = [asked, reply]
        self.revision += 1
