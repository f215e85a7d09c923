"""What a conversation asks of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from qwchat.events import TextEvent
from qwchat.messages import Message
from qwchat.request import Prompt, Request

Cancel = Callable[[], bool]
"""Asked while a reply is generated; True ends it."""


class ChatModel(Protocol):
    """The part of `qwchat.Model` that the chat uses; see there."""

    @property
    def context(self) -> int:
        """Tokens that prompt and reply may fill together."""

    @property
    def longest_context(self) -> int:
        """The longest context that the model was made for."""

    @property
    def threads(self) -> int:
        """Threads that compute."""

    @property
    def kv(self) -> str:
        """Kind of the KV cache."""

    def prompt(self, messages: Sequence[Message], *, continuing: bool = False) -> Prompt:
        """Render the prompt of a conversation; `continuing`: its last message is the beginning of the reply."""

    def stream(self, prompt: Prompt, request: Request, cancel: Cancel | None = None) -> Iterator[TextEvent]:
        """Generate the reply to `prompt`."""

    def cached(self, prompt: Prompt) -> int:
        """Return how many tokens of `prompt` the KV cache holds."""

    def reevaluated_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens of `prompt` were evaluated before and have to be evaluated again."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`."""

    def reconfigure(self, *, threads: int | None, context: int | None, kv: str) -> int:
        """Continue with other settings; return how many cached tokens have to be evaluated again."""
