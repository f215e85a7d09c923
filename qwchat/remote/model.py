"""A model on a server, with the interface that the chat uses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.wording import Argument, ArgumentMessage, SuggestedArgument
from qwchat.errors import PromptTooLongError, QwchatError, UsageError
from qwchat.events import TextEvent
from qwchat.limits import DEFAULT_CONTEXT, MAX_INTEGER
from qwchat.messages import Message
from qwchat.remote.client import EndpointClient, ServerModel
from qwchat.remote.remote_reply import RemoteReplyBuilder
from qwchat.remote.request_body import chat_body, sent_messages
from qwchat.remote.token_estimate import TokenEstimate, Turns, turns_of
from qwchat.remote.transport import Cancel, CancelledError
from qwchat.request import Prompt, PromptOptions, Request

_FULL_SHARE = 0.6  # From this share of the context on, the server counts the tokens of a prompt.
_LONG_TEXT = 2000  # characters; the server counts the tokens of a longer text
_BYTES_PER_TOKEN = 1024  # with its framing
_BYTES_PER_ALTERNATIVE = 512
_SLACK_BYTES = 1 << 20
_CONTINUES = {
    "vllm": {"continue_final_message": True, "add_generation_prompt": False},
    "sglang": {"continue_final_message": True},
    "qwchat": {"continue_final_message": True, "add_generation_prompt": False},
    "llamacpp": {},
}
"""Fields that ask for more of the last message, by the name of the server's software."""


@dataclass(frozen=True)
class RemotePrompt(Prompt):
    """A prompt that the server renders.

    Attributes:
        messages: the conversation.
        sent: the messages as the server gets them.
        options: how to render the prompt.
        continuing: whether the last message is an unfinished reply.
    """

    messages: tuple[Message, ...] = ()
    sent: tuple[dict[str, Any], ...] = ()
    options: PromptOptions = field(default_factory=PromptOptions)
    continuing: bool = False


class RemoteModel:
    """A model on a server. Use it in one thread at a time.

    Args:
        client: the client of the server.
        model: the model.
        context: size of the context window in tokens; None for that of the server, or 4,096 if it does not say.
        clock: returns seconds.

    Raises:
        UsageError: `context` is larger than that of the server.
    """

    thinks = True
    reevaluation_seconds = 0.0
    threads = gpu_layers = 0
    kv = device = ""

    def __init__(
        self,
        client: EndpointClient,
        model: ServerModel,
        context: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._model, self._clock = client, model, clock
        self._estimate = TokenEstimate()
        self.context = self._checked_context(context)

    @property
    def name(self) -> str:
        """Name of the model on the server."""
        return self._model.name

    @property
    def host(self) -> str:
        """Name of the server."""
        return self._client.endpoint.name

    @property
    def reports_context(self) -> bool:
        """Whether the server says how large its context window is."""
        return self._model.context is not None

    @property
    def longest_context(self) -> int:
        """The longest context window that the server allows; if it does not say, any may be set."""
        return self._model.context or MAX_INTEGER

    @property
    def cached_ids(self) -> NDArray[np.int64]:
        """Token ids in the KV cache, which is on the server: none."""
        return np.empty(0, np.int64)

    def prompt(
        self, messages: Sequence[Message], *, continuing: bool = False, options: PromptOptions | None = None
    ) -> RemotePrompt:
        """Return the prompt of a conversation, with an estimate of its length. Raises UsageError."""
        if continuing and self._model.software not in _CONTINUES:
            raise UsageError(f"{self.host} cannot continue a reply: ask for another one")
        options = options or PromptOptions()
        sent = sent_messages(messages, continuing=continuing, options=options)
        tokens, exact = self._count(turns_of(sent))
        return RemotePrompt(range(tokens), 0, "optional", not exact, tuple(messages), tuple(sent), options, continuing)

    def _count(self, turns: Turns) -> tuple[int, bool]:
        tokens, exact = self._estimate.prompt(turns)
        if not exact and tokens > _FULL_SHARE * self.context:
            counted = self._client.count_tokens("\n".join(text for _, text in turns), self.name)
            if counted is not None:
                self._estimate.learn(turns, tokens := self._estimate.with_control_tokens(counted, turns))
        return tokens, exact

    def cached(self, prompt: Prompt) -> int:
        """Return how many tokens of `prompt` the KV cache holds: unknown, thus 0."""
        return 0

    def reevaluated_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens have to be evaluated again: unknown, thus 0."""
        return 0

    def encode(self, text: str) -> Sequence[int]:
        """Return a sequence as long as the tokens of `text`, by an estimate or as the server counts them."""
        counted = self._client.count_tokens(text, self.name) if len(text) >= _LONG_TEXT else None
        return range(self._estimate.text(text) if counted is None else counted)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Raise UsageError: the tokenizer is on the server."""
        raise UsageError(f"the tokenizer is on {self.host}, so token ids cannot be decoded")

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
        """Change the context window; the other settings are those of the server. Returns 0. Raises UsageError."""
        self.context = self._checked_context(context)
        return 0

    def close(self) -> None:
        """Do nothing: each request has a connection of its own."""

    def stream(self, prompt: Prompt, request: Request, cancel: Cancel | None = None) -> Iterator[TextEvent]:
        """Ask the server for the reply to `prompt` and yield it as it arrives.

        Raises:
            PromptTooLongError: the prompt does not fit in the context window.
            UsageError: `request` needs what a server cannot do.
            EndpointError, ModelError: the server does not reply, or cuts the reply off. What arrived was yielded.
        """
        assert isinstance(prompt, RemotePrompt), "prompts of other models have no messages"
        if request.think_budget:
            remedy = SuggestedArgument("think_budget", 0)
            raise UsageError(ArgumentMessage(f"a thought on {self.host} cannot be limited: give ", remedy))
        if prompt.tokens >= self.context and not prompt.estimated:
            raise PromptTooLongError(prompt.tokens, self.context, self.longest_context)
        continued = prompt.messages[-1]["content"] if prompt.continuing else ""
        fields = _CONTINUES[self._model.software] if prompt.continuing else None
        body = chat_body(self.name, list(prompt.sent), request, prompt.options, continues_with=fields)
        builder = RemoteReplyBuilder(request, prompt.tokens, self.context, continued, self._clock)
        limit = self._max_bytes(request)
        cancelled = False
        chunks = self._client.chat(body, cancel, tokens=prompt.tokens, context=self.context, max_bytes=limit)
        try:
            for chunk in chunks:
                yield from builder.push(chunk)
                if builder.stopped:
                    break
        except CancelledError:
            cancelled = True
        except QwchatError:
            yield from builder.flush()
            raise
        finally:
            chunks.close()
        yield from builder.flush()
        done = builder.done(cancelled=cancelled)
        if not done.stats.estimated and not prompt.continuing:
            self._estimate.learn(turns_of(prompt.sent), done.stats.prompt_tokens)
        yield done

    def _max_bytes(self, request: Request) -> int:
        tokens = self.context if request.max_tokens is None else min(request.max_tokens, self.context)
        return _SLACK_BYTES + tokens * (_BYTES_PER_TOKEN + _BYTES_PER_ALTERNATIVE * request.logprobs)

    def _checked_context(self, context: int | None) -> int:
        known = self._model.context
        if context is None:
            return known or DEFAULT_CONTEXT
        if known is not None and context > known:
            limits = f" must be from 1 to {known:,} tokens, the maximum of {self.host}, not {context:,}"
            raise UsageError(ArgumentMessage(Argument("context"), limits))
        return context
