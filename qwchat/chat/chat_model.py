"""The interface through which the chat uses a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwchat.events import TextEvent
from qwchat.messages import Message
from qwchat.request import Prompt, PromptOptions, Request

Cancel = Callable[[], bool]
"""Called while a reply is generated; returning True stops it."""


class ChatModel(Protocol):
    """The part of `qwchat.Model` that the chat uses. The methods are documented there.

    `qwchat.remote.model.RemoteModel` is the other implementation.
    """

    @property
    def host(self) -> str:
        """Name of the server where the model runs; "" for this process."""

    @property
    def context(self) -> int:
        """Size of the context window in tokens, shared by prompt and reply."""

    @property
    def longest_context(self) -> int:
        """The longest context window that the model supports."""

    @property
    def threads(self) -> int:
        """Number of compute threads."""

    @property
    def kv(self) -> str:
        """Number format of the KV cache."""

    @property
    def cached_ids(self) -> NDArray[np.int64]:
        """Token ids in the KV cache, (positions,) i64."""

    @property
    def reevaluation_seconds(self) -> float:
        """Estimated seconds to evaluate the cached tokens again; 0 before any prefill."""

    def prompt(
        self, messages: Sequence[Message], *, continuing: bool = False, options: PromptOptions | None = None
    ) -> Prompt:
        """Render the prompt of a conversation; `continuing`: its last message is the beginning of the reply."""

    def stream(self, prompt: Prompt, request: Request, cancel: Cancel | None = None) -> Iterator[TextEvent]:
        """Generate the reply to `prompt`."""

    def cached(self, prompt: Prompt) -> int:
        """Return how many tokens of `prompt` the KV cache holds."""

    def reevaluated_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens of `prompt` were evaluated before and have to be evaluated again."""

    def encode(self, text: str) -> Sequence[int]:
        """Return the token ids of `text`; of a model on a server only their number is meant."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`."""

    @property
    def device(self) -> str:
        """Device that computes, `cpu` or `cuda:N`."""

    @property
    def gpu_layers(self) -> int:
        """Number of layers that run on the GPU."""

    def reconfigure(
        self,
        *,
        threads: int | None,
        context: int | None,
        device: str,
        gpu_layers: int | None,
        kv: str,
        activations: int,
    ) -> int:
        """Apply new settings. Return how many cached tokens have to be evaluated again."""
